"""SAM's prompt encoder and two-way mask decoder, conditioned on one embedding instead of clicks.

Source: facebookresearch/segment-anything (architecture, parameter names) and LISA (the embedding as a sparse prompt).
The point and box embeddings of SAM's prompt encoder, which an embedding prompt never uses, are not built.
"""

import math

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import SegmentationConfig
from pokevla_jax.models import stacking
from pokevla_jax.models.attention import Source
from pokevla_jax.models.attention import attend
from pokevla_jax.models.convolution import PatchConv
from pokevla_jax.models.convolution import UpConv
from pokevla_jax.models.convolution import assemble
from pokevla_jax.models.layers import MLP
from pokevla_jax.models.layers import TOKEN
from pokevla_jax.models.layers import Buffer
from pokevla_jax.models.layers import Init
from pokevla_jax.models.layers import LayerNorm
from pokevla_jax.models.layers import Linear
from pokevla_jax.models.layers import add_bias
from pokevla_jax.models.layers import gelu
from pokevla_jax.models.layers import parameter
from pokevla_jax.models.layers import repeat
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float

NUM_MASK_TOKENS = 4
# SAM's transformer keeps torch's default; its channel norms and its image encoder use 1e-6.
EPS = 1e-5


class PromptEncoder(nnx.Module):
    """The dense prompt of a decoder: a learned "no mask" embedding, or a mask of logits scaled down to the grid."""

    def __init__(self, config: SegmentationConfig, *, mask_prompt: bool):
        dim, self.grid = config.decoder_dim, config.feature_grid
        self.gaussian_matrix = parameter(Init(std=1.0), (2, dim // 2), (None, None), kind=Buffer)
        if mask_prompt:
            self.conv1 = PatchConv(1, 4, 2)
            self.norm1 = LayerNorm(4)
            self.conv2 = PatchConv(4, 16, 2)
            self.norm2 = LayerNorm(16)
            self.conv3 = PatchConv(16, dim, 1)
        else:
            self.no_mask_embed = parameter(TOKEN, (dim,), ("embed",))

    def positions(self) -> Float[Array, "z d"]:
        """Random Fourier features of the cell centres, row-major, float32."""
        centers = (jnp.arange(self.grid, dtype=jnp.float32) + 0.5) / self.grid
        y, x = jnp.meshgrid(centers, centers, indexing="ij")
        coordinates = 2 * jnp.stack([x, y], axis=-1).reshape(-1, 2) - 1
        matrix = jax.lax.stop_gradient(self.gaussian_matrix[...])
        # Angles of several turns: the reduced precision of a TPU matrix product would show.
        angles = 2 * math.pi * jnp.matmul(coordinates, matrix, precision="highest")
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def add_to(
        self, features: Float[Array, "b z d"], logits: Float[Array, "b m m"] | None = None
    ) -> Float[Array, "b z d"]:
        """``features`` plus the dense prompt."""
        if logits is None:
            return add_bias(features, self.no_mask_embed[...])
        x = logits[..., None].astype(features.dtype)
        x = gelu(self.norm1(self.conv1(x)))
        x = gelu(self.norm2(self.conv2(x)))
        return features + self.conv3(x).reshape(features.shape)


class Attention(nnx.Module):
    """Multi-head attention whose inner width may be smaller than the model's."""

    def __init__(self, dim: int, inner: int, num_heads: int):
        heads, axes = (num_heads, inner // num_heads), ("embed", "heads", "head_dim")
        self.q_proj = Linear(dim, heads, axes=axes)
        self.k_proj = Linear(dim, heads, axes=axes)
        self.v_proj = Linear(dim, heads, axes=axes)
        self.out_proj = Linear(heads, dim, axes=("heads", "head_dim", "embed"))

    def __call__(
        self, q: Float[Array, "b s d"], k: Float[Array, "b z d"], v: Float[Array, "b z d"]
    ) -> Float[Array, "b s d"]:
        return self.out_proj(attend(self.q_proj(q), Source(self.k_proj(k), self.v_proj(v))))


class TwoWayLayer(nnx.Module):
    """Tokens attend to themselves, then to the image; an MLP; the image attends to the tokens."""

    def __init__(self, config: SegmentationConfig):
        dim, heads = config.decoder_dim, config.decoder_heads
        self.self_attn = Attention(dim, dim, heads)
        self.norm1 = LayerNorm(dim, eps=EPS)
        self.cross_attn_token_to_image = Attention(dim, dim // 2, heads)
        self.norm2 = LayerNorm(dim, eps=EPS)
        self.mlp = MLP(dim, config.decoder_mlp_dim, dim, activation=jax.nn.relu)
        self.norm3 = LayerNorm(dim, eps=EPS)
        self.cross_attn_image_to_token = Attention(dim, dim // 2, heads)
        self.norm4 = LayerNorm(dim, eps=EPS)

    def __call__(
        self,
        tokens: Float[Array, "b k d"],
        image: Float[Array, "b z d"],
        prompt: Float[Array, "b k d"],
        position: Float[Array, "z d"],
        *,
        first: bool,
    ) -> tuple[Float[Array, "b k d"], Float[Array, "b z d"]]:
        """``prompt`` (the initial tokens) and ``position`` stand in for positions of tokens and image."""
        if first:  # The tokens are still the prompt itself: no position to add, nothing to keep.
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            q = tokens + prompt
            tokens = tokens + self.self_attn(q, q, tokens)
        tokens = self.norm1(tokens)
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + prompt, image + position, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        image = self.norm4(image + self.cross_attn_image_to_token(image + position, tokens + prompt, tokens))
        return tokens, image


class TwoWayTransformer(nnx.Module):
    """Two-way layers, then a last look of the tokens at the image."""

    def __init__(self, config: SegmentationConfig):
        dim = config.decoder_dim
        self.depth = config.decoder_depth
        self.layers = stacking.stack(lambda: TwoWayLayer(config), config.decoder_depth)
        self.final_attn_token_to_image = Attention(dim, dim // 2, config.decoder_heads)
        self.norm_final_attn = LayerNorm(dim, eps=EPS)

    def __call__(
        self, prompt: Float[Array, "b k d"], image: Float[Array, "b z d"], position: Float[Array, "z d"]
    ) -> tuple[Float[Array, "b k d"], Float[Array, "b z d"]]:
        tokens = prompt
        for i in range(self.depth):  # A loop, not a scan: the first layer is wired differently, and there are two.
            tokens, image = stacking.layer(self.layers, i)(tokens, image, prompt, position, first=i == 0)
        tokens = tokens + self.final_attn_token_to_image(tokens + prompt, image + position, image)
        return self.norm_final_attn(tokens), image


class ThreeLayerMLP(nnx.Module):
    """SAM's small ReLU heads."""

    def __init__(self, dim: int, outputs: int):
        self.fc1 = Linear(dim, dim, axes=("embed", None))
        self.fc2 = Linear(dim, dim, axes=("embed", None))
        self.fc3 = Linear(dim, outputs, axes=("embed", None))

    def __call__(self, x: Float[Array, "... d"]) -> Float[Array, "... o"]:
        return self.fc3(jax.nn.relu(self.fc2(jax.nn.relu(self.fc1(x)))))


class MaskDecoder(nnx.Module):
    """Image features and one prompt embedding to mask logits four times as fine as the feature grid.

    SAM's other three mask tokens attend along but only the first mask is read (SAM's ``multimask_output=False``), so
    their hypernetworks and the IoU head carry SAM's weights and take no part.
    """

    def __init__(self, config: SegmentationConfig):
        dim, self.grid = config.decoder_dim, config.feature_grid
        self.iou_token = parameter(TOKEN, (1, dim), (None, "embed"))
        self.mask_tokens = parameter(TOKEN, (NUM_MASK_TOKENS, dim), (None, "embed"))
        self.transformer = TwoWayTransformer(config)
        self.upscale1 = UpConv(dim, dim // 4)
        self.upscale_norm = LayerNorm(dim // 4)
        self.upscale2 = UpConv(dim // 4, dim // 8)
        self.hypernetworks = stacking.stack(lambda: ThreeLayerMLP(dim, dim // 8), NUM_MASK_TOKENS)
        self.iou_head = ThreeLayerMLP(dim, NUM_MASK_TOKENS)

    def __call__(
        self, image: Float[Array, "b z d"], position: Float[Array, "z d"], embedding: Float[Array, "b d"]
    ) -> Float[Array, "b m m"]:
        """Mask logits, float32."""
        b, dtype = image.shape[0], image.dtype
        own = jnp.concatenate([self.iou_token[...], self.mask_tokens[...]]).astype(dtype)
        tokens = jnp.concatenate([repeat(own, b).astype(dtype), embedding[:, None]], axis=1)
        tokens, image = self.transformer(tokens, image, position.astype(dtype))
        x = self.upscale1(image)
        x = x.reshape(*x.shape[:2], 4, -1).swapaxes(1, 2)
        x = gelu(self.upscale2(gelu(self.upscale_norm(x))))
        weights = stacking.layer(self.hypernetworks, 0)(tokens[:, 1])
        # The four cells that lie along the channels, each with the same weights, in one product.
        weights = jnp.einsum("bc,tu->btuc", weights, jnp.eye(4, dtype=dtype)).reshape(b, 4, -1)
        logits = jnp.einsum("bszk,btk->bstz", x, weights, preferred_element_type=jnp.float32)
        return assemble(logits, self.grid)
