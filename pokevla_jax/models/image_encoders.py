"""Image encoders of the mask branch: images in, a square map of ``decoder_dim`` features out.

``SmallEncoder`` is trained with the rest, at sizes that two cores can pay. ``SamEncoder`` is SAM's ViT (frozen).
"""

import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ConfigError
from pokevla_jax.config import ModelConfig
from pokevla_jax.models.convolution import Conv3x3
from pokevla_jax.models.convolution import PatchConv
from pokevla_jax.models.layers import LayerNorm
from pokevla_jax.models.layers import gelu
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8


class SmallEncoder(nnx.Module):
    """Two strided convolutions down to the feature grid, then a residual 3 x 3 one."""

    def __init__(self, config: ModelConfig):
        size, seg = config.vision.image_size, config.segmentation
        stride = size // seg.feature_grid
        if size % seg.feature_grid or stride % 2:
            raise ConfigError(
                f"config.model.segmentation.image_encoder 'small' needs image_size {size} to be an even multiple of "
                f"feature_grid {seg.feature_grid}; try feature_grid {size // 8}"
            )
        dim = seg.decoder_dim
        self.dtype = jnp.dtype(config.dtype)
        self.conv1 = PatchConv(3, dim // 2, stride // 2)
        self.norm1 = LayerNorm(dim // 2)
        self.conv2 = PatchConv(dim // 2, dim, 2)
        self.norm2 = LayerNorm(dim)
        self.conv3 = Conv3x3(dim, dim)
        self.norm3 = LayerNorm(dim)

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b g g d"]:
        x = images.astype(self.dtype) / 127.5 - 1
        x = gelu(self.norm1(self.conv1(x)))
        x = self.norm2(self.conv2(x))
        return self.norm3(x + self.conv3(gelu(x)))


class SamEncoder(nnx.Module):
    """SAM's ViT image encoder."""

    def __init__(self, config: ModelConfig):
        raise ConfigError("config.model.segmentation.image_encoder 'sam' is not built yet; use 'small'")
