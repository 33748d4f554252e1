"""The aggregator of VGGT, the frozen geometry teacher: all views of a moment to features that know their 3-D layout.

A DINOv2 ViT makes patch tokens of every view; pairs of blocks then attend within a view and across all of them. The
output of a pair joins both blocks' tokens on the channels. Source: facebookresearch/vggt (architecture and names). A
random teacher teaches nothing: its weights are imported. DINOv2's ``mask_token`` (1 x width), which no forward pass
reads, and pairs behind the one that is read are not built.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import TowerConfig
from pokevla_jax.config import VggtConfig
from pokevla_jax.models import stacking
from pokevla_jax.models.attention import Implementation
from pokevla_jax.models.attention import Source
from pokevla_jax.models.attention import attend
from pokevla_jax.models.attention import attend_in_chunks
from pokevla_jax.models.convolution import space_to_depth
from pokevla_jax.models.layers import MLP
from pokevla_jax.models.layers import TOKEN
from pokevla_jax.models.layers import Init
from pokevla_jax.models.layers import LayerNorm
from pokevla_jax.models.layers import Linear
from pokevla_jax.models.layers import RotaryTable
from pokevla_jax.models.layers import add_bias
from pokevla_jax.models.layers import multiply
from pokevla_jax.models.layers import parameter
from pokevla_jax.models.layers import repeat
from pokevla_jax.models.layers import rotary_table
from pokevla_jax.models.layers import rotate
from pokevla_jax.models.resize import resize
from pokevla_jax.models.vision import Block as VitBlock
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
ROPE_THETA = 100.0
EPS = 1e-5  # torch's default, which the pairs use; the patch embedding's ViT has 1e-6
LAYER_SCALE_INIT = 0.01
# Global attention sees all views: at two views and 518 pixels the logits of all 2748 queries are 0.5 GB a sample.
QUERY_CHUNK = 512
# Base of the frequencies of the position embedding that may be added to the features, and its weight.
POSITION_THETA = 100.0
POSITION_SCALE = 0.1


class PatchEmbed(nnx.Module):
    """DINOv2 with registers, to its normed patch tokens; positions cover the class token, registers have none."""

    def __init__(self, config: VggtConfig, implementation: Implementation):
        self.patch_size, self.num_prefix = config.patch_size, 1 + config.num_registers
        width = config.width
        self.patch_embed = Linear(config.patch_size**2 * 3, width, axes=(None, "embed"))
        self.cls_token = parameter(TOKEN, (1, width), (None, "embed"))
        self.register_tokens = parameter(TOKEN, (config.num_registers, width), (None, "embed"))
        self.pos_embed = parameter(TOKEN, (1 + config.num_patches, width), (None, "embed"))
        tower = TowerConfig(
            width=width,
            depth=config.embed_depth,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            layer_scale=True,
        )
        self.blocks = stacking.stack(lambda: VitBlock(tower, implementation), config.embed_depth)
        self.norm = LayerNorm(width)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b p d"]:
        x = self.patch_embed(space_to_depth(images, self.patch_size))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        positions = self.pos_embed[...]
        x = add_bias(x, positions[1:])
        prefix = jnp.concatenate([self.cls_token[...] + positions[:1], self.register_tokens[...]])
        x = jnp.concatenate([repeat(prefix, x.shape[0]).astype(x.dtype), x], axis=1)
        x, _ = stacking.scan(self.blocks, x)
        return self.norm(x)[:, self.num_prefix :]


class Attention(nnx.Module):
    """Self-attention with normed queries and keys and rotary positions along rows, then columns."""

    def __init__(self, config: VggtConfig, implementation: Implementation):
        heads = (config.num_heads, config.width // config.num_heads)
        self.implementation = implementation
        self.qkv = Linear(config.width, (3, *heads), axes=("embed", None, "heads", "head_dim"))
        self.q_norm = LayerNorm(heads[1], eps=EPS)
        self.k_norm = LayerNorm(heads[1], eps=EPS)
        self.proj = Linear(heads, config.width, axes=("heads", "head_dim", "embed"))

    def __call__(self, x: Float[Array, "b s d"], rotary: tuple[RotaryTable, RotaryTable]) -> Float[Array, "b s d"]:
        q, k, v = jnp.unstack(self.qkv(x), axis=2)
        q, k = (rotate_2d(norm(y), rotary) for norm, y in ((self.q_norm, q), (self.k_norm, k)))
        if self.implementation == "xla":
            return self.proj(attend_in_chunks(q, Source(k, v), size=QUERY_CHUNK))
        return self.proj(attend(q, Source(k, v), implementation=self.implementation))


class Block(nnx.Module):
    """A pre-norm block with LayerScale, over one view or over all."""

    def __init__(self, config: VggtConfig, implementation: Implementation):
        init = Init(mean=LAYER_SCALE_INIT)
        self.norm1 = LayerNorm(config.width, eps=EPS)
        self.attention = Attention(config, implementation)
        self.ls1 = parameter(init, (config.width,), (None,))
        self.norm2 = LayerNorm(config.width, eps=EPS)
        self.mlp = MLP(config.width, config.mlp_dim, config.width)
        self.ls2 = parameter(init, (config.width,), (None,))

    def __call__(self, x: Float[Array, "b s d"], rotary: tuple[RotaryTable, RotaryTable]) -> Float[Array, "b s d"]:
        with jax.named_scope("attention"):
            x = x + multiply(self.attention(self.norm1(x), rotary), self.ls1[...])
        with jax.named_scope("mlp"):
            return x + multiply(self.mlp(self.norm2(x)), self.ls2[...])


class Pair(nnx.Module):
    """A block within each view, then one across all views."""

    def __init__(self, config: VggtConfig, implementation: Implementation):
        self.frame_block = Block(config, implementation)
        self.global_block = Block(config, implementation)

    def __call__(
        self, x: Float[Array, "b v s d"], rotary: tuple[RotaryTable, RotaryTable]
    ) -> tuple[Float[Array, "b v s d"], Float[Array, "b v s d"]]:
        """The tokens after the first and after the second block; ``rotary`` is that of one view."""
        b, v, s, d = x.shape
        with jax.named_scope("frame"):
            frame = self.frame_block(x.reshape(b * v, s, d), rotary)
        everywhere = jax.tree.map(lambda table: jnp.tile(table, (v, 1, 1)), rotary)
        with jax.named_scope("global"):
            whole = self.global_block(frame.reshape(b, v * s, d), everywhere)
        return frame.reshape(x.shape), whole.reshape(x.shape)


class Aggregator(nnx.Module):
    """Views to the joined tokens of pair ``layer``: ``[camera | registers | patches]`` of every view, 2 x width."""

    def __init__(self, config: VggtConfig, *, layer: int = -1, implementation: Implementation = "xla"):
        self.config = config
        # Row 0 is given to the first view, whose camera is the origin, row 1 to each of the others.
        self.camera_token = parameter(TOKEN, (2, 1, config.width), (None, None, "embed"))
        self.register_token = parameter(TOKEN, (2, config.num_registers, config.width), (None, None, "embed"))
        self.patch_embed = PatchEmbed(config, implementation)
        self.pairs = stacking.stack(lambda: Pair(config, implementation), layer % config.depth + 1)

    @property
    def num_prefix(self) -> int:
        """Tokens of a view before its patches."""
        return 1 + self.config.num_registers

    def __call__(self, images: Float[Array, "b v h w 3"], *, dtype: jnp.dtype) -> Float[Array, "b v s 2*d"]:
        """Tokens of all views, in the compute dtype; ``images`` are in [0, 1] and of the configured size."""
        b, v = images.shape[:2]
        normalized = (images.astype(jnp.float32) - jnp.array(MEAN, jnp.float32)) / jnp.array(STD, jnp.float32)
        with jax.named_scope("patch_embed"):
            patches = self.patch_embed(normalized.astype(dtype).reshape(b * v, *images.shape[2:]))
        slots = jnp.concatenate([self.camera_token[...], self.register_token[...]], axis=1)
        own = repeat(slots[np.minimum(np.arange(v), 1)], b).astype(dtype)
        x = jnp.concatenate([own, patches.reshape(b, v, *patches.shape[1:])], axis=2)
        rotary = self._rotary()
        # The carry holds the tokens after either block of the last pair; the next one goes on from the second.
        (frame, whole), _ = stacking.scan(self.pairs, (x, x), step=lambda pair, carry, _: pair(carry[1], rotary))
        return jnp.concatenate([frame, whole], axis=-1)

    def _rotary(self) -> tuple[RotaryTable, RotaryTable]:
        """Angles of one view's tokens along rows and columns: patches count from 1, the tokens before them are at 0."""
        config = self.config
        places = np.stack(np.divmod(np.arange(config.num_patches), config.grid)) + 1
        rows, columns = np.pad(places, ((0, 0), (self.num_prefix, 0)))
        half = config.width // config.num_heads // 2
        return rotary_table(rows, half, ROPE_THETA), rotary_table(columns, half, ROPE_THETA)


def rotate_2d(x: Float[Array, "b s h k"], rotary: tuple[RotaryTable, RotaryTable]) -> Float[Array, "b s h k"]:
    """Rotary positions in two dimensions: the first half of a head turns with the row, the second with the column."""
    halves = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([rotate(half, table) for half, table in zip(halves, rotary, strict=True)], axis=-1)


def position_embedding(grid: int, channels: int) -> Float[Array, "grid grid channels"]:
    """Sines and cosines of where a patch lies in its view, float32: first half of the channels from x, second from y.

    Coordinates are those of VGGT's heads: patch centres, divided by the view's diagonal (in half sides).
    """
    centers = (2 * np.arange(grid) + 1 - grid) / grid / np.sqrt(2)
    frequencies = POSITION_THETA ** -(np.arange(channels // 4) / (channels / 4))
    angles = centers[:, None] * frequencies
    one_axis = jnp.asarray(np.concatenate([np.sin(angles), np.cos(angles)], axis=-1), jnp.float32)
    shape = (grid, grid, channels // 2)
    x, y = jnp.broadcast_to(one_axis[None], shape), jnp.broadcast_to(one_axis[:, None], shape)
    return jnp.concatenate([x, y], axis=-1)


def teacher_features(
    aggregator: Aggregator, images: UInt8[Array, "b v h w 3"], config: GeometryConfig, *, grid: int, dtype: jnp.dtype
) -> Float[Array, "b n 2*d"]:
    """The teacher's features of every vision token, float32, without a gradient.

    As Spatial Forcing makes its targets: the training images, enlarged (bicubic) to the teacher's size; patch tokens of
    one pair of blocks, all views seen together; a position embedding added to them where configured; resampled
    (bilinear, corners aligned) to the policy's ``grid``.
    """
    size = config.vggt.image_size
    x = resize(images.astype(jnp.float32) / 255, (size, size), "bicubic")
    tokens = aggregator(x, dtype=dtype)[:, :, aggregator.num_prefix :].astype(jnp.float32)
    b, v, _, channels = tokens.shape
    maps = tokens.reshape(b, v, config.vggt.grid, config.vggt.grid, channels)
    if config.position_embedding:
        maps = maps + POSITION_SCALE * position_embedding(config.vggt.grid, channels)
    features = resize(maps, (grid, grid), "bilinear", align_corners=True)
    return jax.lax.stop_gradient(features.reshape(b, v * grid * grid, channels))
