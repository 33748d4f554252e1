"""The fused vision encoder: a DINOv2 and a SigLIP tower side by side, then one MLP into the language model's width.

Sources: Prismatic VLMs (feature block, order of the towers, fused MLP) and timm's ``vit_large_patch14_reg4_dinov2`` and
``vit_so400m_patch14_siglip_224`` (blocks). A tower carries only the blocks up to its feature block; the last block,
the final norm and SigLIP's attention pooling, which no released policy reads, are not built.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ModelConfig
from pokevla_jax.config import TowerConfig
from pokevla_jax.config import VisionConfig
from pokevla_jax.models import stacking
from pokevla_jax.models.attention import TPU
from pokevla_jax.models.attention import Implementation
from pokevla_jax.models.attention import Source
from pokevla_jax.models.attention import attend
from pokevla_jax.models.convolution import space_to_depth
from pokevla_jax.models.layers import MLP
from pokevla_jax.models.layers import TOKEN
from pokevla_jax.models.layers import Init
from pokevla_jax.models.layers import LayerNorm
from pokevla_jax.models.layers import Linear
from pokevla_jax.models.layers import add_bias
from pokevla_jax.models.layers import gelu
from pokevla_jax.models.layers import multiply
from pokevla_jax.models.layers import parameter
from pokevla_jax.models.layers import repeat
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

# DINOv2 starts its LayerScale at 1e-5 for depth; at the depths trained here from scratch that would mute the blocks.
LAYER_SCALE_INIT = 0.1


class SelfAttention(nnx.Module):
    """Multi-head self-attention with a fused projection to queries, keys and values, in that order."""

    def __init__(self, width: int, num_heads: int, implementation: Implementation):
        heads = (num_heads, width // num_heads)
        self.implementation = implementation
        self.qkv = Linear(width, (3, *heads), axes=("embed", None, "heads", "head_dim"))
        self.proj = Linear(heads, width, axes=("heads", "head_dim", "embed"))

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        q, k, v = self.qkv.parts(x) if self.implementation in TPU else jnp.unstack(self.qkv(x), axis=2)
        return self.proj(attend(q, Source(k, v), implementation=self.implementation))


class Block(nnx.Module):
    """A pre-norm transformer block, with DINOv2's LayerScale where the tower has it."""

    def __init__(self, config: TowerConfig, implementation: Implementation = "xla"):
        init = Init(mean=LAYER_SCALE_INIT)
        self.norm1 = LayerNorm(config.width)
        self.attention = SelfAttention(config.width, config.num_heads, implementation)
        self.ls1 = parameter(init, (config.width,), (None,)) if config.layer_scale else None
        self.norm2 = LayerNorm(config.width)
        self.mlp = MLP(config.width, config.mlp_dim, config.width)
        self.ls2 = parameter(init, (config.width,), (None,)) if config.layer_scale else None

    def __call__(self, x: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
        with jax.named_scope("attention"):
            y = self.attention(self.norm1(x))
            x = x + (y if self.ls1 is None else multiply(y, self.ls1[...]))
        with jax.named_scope("mlp"):
            y = self.mlp(self.norm2(x))
            return x + (y if self.ls2 is None else multiply(y, self.ls2[...]))


class Tower(nnx.Module):
    """A vision transformer read at its feature block: raw patch features, no final norm, no prefix tokens."""

    def __init__(self, config: TowerConfig, vision: VisionConfig, implementation: Implementation = "xla"):
        self.config, self.patch_size = config, vision.patch_size
        width = config.width
        self.num_prefix = int(config.class_token) + config.num_registers
        self.patch_embed = Linear(vision.patch_size**2 * 3, width, axes=(None, "embed"))
        self.pos_embed = parameter(TOKEN, (vision.num_patches, width), (None, "embed"))
        # Put in front, in this order, after the position embedding, which has patches only.
        self.cls_token = parameter(TOKEN, (1, width), (None, "embed")) if config.class_token else None
        registers = (config.num_registers, width)
        self.reg_token = parameter(TOKEN, registers, (None, "embed")) if config.num_registers else None
        num_layers = config.feature_block % config.depth + 1
        self.blocks = stacking.stack(lambda: Block(config, implementation), num_layers)

    def __call__(
        self, images: UInt8[Array, "b h w 3"], *, dtype: jnp.dtype, remat: stacking.Remat
    ) -> Float[Array, "b p d"]:
        # Bytes are rearranged before they become floats: a quarter of the memory traffic.
        patches = space_to_depth(images, self.patch_size).astype(jnp.float32)
        statistics = (self.config.image_mean, self.config.image_std)
        mean, std = (jnp.tile(jnp.array(x, jnp.float32), self.patch_size**2) for x in statistics)
        x = self.patch_embed(((patches / 255 - mean) / std).astype(dtype))
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        x = add_bias(x, self.pos_embed[...])
        prefix = [repeat(t[...], x.shape[0]).astype(dtype) for t in (self.cls_token, self.reg_token) if t is not None]
        x = jnp.concatenate([*prefix, x], axis=1)
        x, _ = stacking.scan(self.blocks, x, remat=remat)
        return x[:, self.num_prefix :]


class Projector(nnx.Module):
    """Prismatic's fused MLP: three linear maps with GELUs between."""

    def __init__(self, inputs: int, hidden: int, outputs: int):
        self.fc1 = Linear(inputs, hidden, axes=("embed", "mlp"))
        self.fc2 = Linear(hidden, outputs, axes=("mlp", "embed"))
        self.fc3 = Linear(outputs, outputs, axes=("embed", None))

    def __call__(self, x: Float[Array, "b n i"]) -> Float[Array, "b n d"]:
        return self.fc3(gelu(self.fc2(gelu(self.fc1(x)))))


class VisionEncoder(nnx.Module):
    """Views to vision tokens: both towers on each view with the same weights, features joined per patch, projected."""

    def __init__(self, config: ModelConfig):
        vision = config.vision
        self.dtype, self.remat = jnp.dtype(config.dtype), config.remat
        self.dinov2 = Tower(vision.dinov2, vision, config.attention)
        self.siglip = Tower(vision.siglip, vision, config.attention)
        inputs = vision.dinov2.width + vision.siglip.width
        self.projector = Projector(inputs, vision.projector_dim, config.language.width)

    def __call__(self, images: UInt8[Array, "b v h w 3"]) -> Float[Array, "b n d"]:
        b, v = images.shape[:2]
        flat = images.reshape(b * v, *images.shape[2:])
        with jax.named_scope("dinov2"):
            dinov2 = self.dinov2(flat, dtype=self.dtype, remat=self.remat)
        with jax.named_scope("siglip"):
            siglip = self.siglip(flat, dtype=self.dtype, remat=self.remat)
        with jax.named_scope("projector"):
            tokens = self.projector(jnp.concatenate([dinov2, siglip], axis=-1))
        return tokens.reshape(b, -1, tokens.shape[-1])
