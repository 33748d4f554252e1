"""Image encoders of the mask branch: images in, a square map of ``decoder_dim`` features out.

``SmallEncoder`` is trained with the rest, at sizes that two cores can pay. ``SamEncoder`` is SAM's ViT (frozen).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from pokevla_jax.config import ConfigError
from pokevla_jax.config import ModelConfig
from pokevla_jax.models import stacking
from pokevla_jax.models.attention import TPU
from pokevla_jax.models.attention import Implementation
from pokevla_jax.models.attention import Source
from pokevla_jax.models.attention import attend
from pokevla_jax.models.attention import attend_in_chunks
from pokevla_jax.models.convolution import Conv3x3
from pokevla_jax.models.convolution import PatchConv
from pokevla_jax.models.layers import MLP
from pokevla_jax.models.layers import TOKEN
from pokevla_jax.models.layers import ZEROS
from pokevla_jax.models.layers import LayerNorm
from pokevla_jax.models.layers import Linear
from pokevla_jax.models.layers import add_bias
from pokevla_jax.models.layers import gelu
from pokevla_jax.models.layers import parameter
from pokevla_jax.models.resize import resize
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


class SamSize(NamedTuple):
    """A SAM image encoder: ``num_groups`` times ``num_windowed`` windowed blocks and a global one."""

    width: int
    num_heads: int
    num_groups: int
    num_windowed: int
    window: int = 14
    patch_size: int = 16


SAM_SIZES = {"vit_b": SamSize(768, 12, 4, 2), "vit_h": SamSize(1280, 16, 4, 7)}
# At 64 x 64 the logits of all queries are 0.8 GB an image; the frozen encoder keeps none for a gradient.
QUERIES_AT_ONCE = 512
SAM_MEAN = (123.675, 116.28, 103.53)
SAM_STD = (58.395, 57.12, 57.375)


class SamAttention(nnx.Module):
    """Self-attention over a ``side`` x ``side`` map with decomposed relative positions.

    SAM adds to a logit what the query says of the key's row and of its column. Both are a product with the one-hot row
    and column of the key, and join the queries' and keys' channels: no bias as large as the logits exists, and any
    kernel will do.
    """

    def __init__(self, size: SamSize, side: int, implementation: Implementation):
        heads = (size.num_heads, size.width // size.num_heads)
        self.side = side
        # cuDNN's kernel takes fewer channels than a whole map's queries get.
        self.implementation: Implementation = "xla" if implementation == "cudnn" else implementation
        self.qkv = Linear(size.width, (3, *heads), axes=("embed", None, "heads", "head_dim"))
        self.proj = Linear(heads, size.width, axes=("heads", "head_dim", "embed"))
        self.rel_pos_h = parameter(ZEROS, (2 * side - 1, heads[1]), (None, "head_dim"))
        self.rel_pos_w = parameter(ZEROS, (2 * side - 1, heads[1]), (None, "head_dim"))

    def __call__(self, x: Float[Array, "b side side d"]) -> Float[Array, "b side side d"]:
        b, side, cells = x.shape[0], self.side, self.side**2
        flat = x.reshape(b, cells, -1)
        q, k, v = self.qkv.parts(flat) if self.implementation in TPU else jnp.unstack(self.qkv(flat), axis=2)
        # Offset of every query from every key along one side, as a row of the tables.
        offsets = jnp.arange(side)[:, None] - jnp.arange(side)[None, :] + side - 1
        by_row, by_column = (table[...].astype(x.dtype)[offsets] for table in (self.rel_pos_h, self.rel_pos_w))
        square = q.reshape(b, side, side, *q.shape[2:])
        rows = jnp.einsum("byxhk,yzk->byxhz", square, by_row).reshape(*q.shape[:3], side)
        columns = jnp.einsum("byxhk,xzk->byxhz", square, by_column).reshape(*q.shape[:3], side)
        width = q.shape[-1]
        queries = jnp.concatenate([q * width**-0.5, rows, columns], axis=-1)
        one_hot = np.stack(np.divmod(np.arange(cells), side), -1)[:, :, None] == np.arange(side)
        places = jnp.asarray(one_hot.reshape(cells, 1, 2 * side), x.dtype)
        keys = jnp.concatenate([k, jnp.broadcast_to(places, (*k.shape[:3], 2 * side))], axis=-1)
        # The logits' own scale, which ``attend`` takes from the width, is in the queries already.
        queries = queries * queries.shape[-1] ** 0.5
        if self.implementation == "xla":
            y = attend_in_chunks(queries, Source(keys, v), size=QUERIES_AT_ONCE)
        else:
            y = attend(queries, Source(keys, v), implementation=self.implementation)
        return self.proj(y).reshape(x.shape)


class SamBlock(nnx.Module):
    """A pre-norm block whose attention sees the whole map or, with a window, one window of it."""

    def __init__(self, size: SamSize, grid: int, implementation: Implementation, *, windowed: bool):
        self.grid, self.window = grid, size.window if windowed else None
        self.norm1 = LayerNorm(size.width)
        self.attention = SamAttention(size, size.window if windowed else grid, implementation)
        self.norm2 = LayerNorm(size.width)
        self.mlp = MLP(size.width, 4 * size.width, size.width)

    def __call__(self, x: Float[Array, "b g g d"]) -> Float[Array, "b g g d"]:
        y = self.norm1(x)
        y = self.attention(y) if self.window is None else self._in_windows(y, self.window)
        x = x + y
        return x + self.mlp(self.norm2(x))

    def _in_windows(self, x: Float[Array, "b g g d"], window: int) -> Float[Array, "b g g d"]:
        # The map is padded to whole windows with zeros, which SAM's windows attend to like anything else.
        b, grid, _, d = x.shape
        count = -(-grid // window)
        pad = count * window - grid
        x = jnp.pad(x, ((0, 0), (0, pad), (0, pad), (0, 0)))
        x = x.reshape(b, count, window, count, window, d).transpose(0, 1, 3, 2, 4, 5)
        x = self.attention(x.reshape(-1, window, window, d))
        x = x.reshape(b, count, count, window, window, d).transpose(0, 1, 3, 2, 4, 5)
        return x.reshape(b, count * window, count * window, d)[:, :grid, :grid]


class SamGroup(nnx.Module):
    """Windowed blocks, then a global one."""

    def __init__(self, size: SamSize, grid: int, implementation: Implementation):
        self.windowed = stacking.stack(lambda: SamBlock(size, grid, implementation, windowed=True), size.num_windowed)
        self.full = SamBlock(size, grid, implementation, windowed=False)

    def __call__(self, x: Float[Array, "b g g d"]) -> Float[Array, "b g g d"]:
        return self.full(stacking.scan(self.windowed, x)[0])


class SamViT(nnx.Module):
    """SAM's image encoder on normalised images: ViT and neck. Source: facebookresearch/segment-anything."""

    def __init__(self, size: SamSize, grid: int, outputs: int, implementation: Implementation = "xla"):
        self.patch_embed = PatchConv(3, size.width, size.patch_size)
        self.pos_embed = parameter(TOKEN, (grid, grid, size.width), (None, None, "embed"))
        self.groups = stacking.stack(lambda: SamGroup(size, grid, implementation), size.num_groups)
        self.neck1 = Linear(size.width, outputs, axes=("embed", None), use_bias=False)
        self.neck_norm1 = LayerNorm(outputs)
        self.neck2 = Conv3x3(outputs, outputs, use_bias=False)
        self.neck_norm2 = LayerNorm(outputs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> Float[Array, "b g g d"]:
        x = add_bias(self.patch_embed(x), self.pos_embed[...])
        x, _ = stacking.scan(self.groups, x)
        return self.neck_norm2(self.neck2(self.neck_norm1(self.neck1(x))))


class SamEncoder(nnx.Module):
    """SAM's frozen encoder on the model's images, scaled up to the size whose patches make the feature grid.

    At SAM's own size (``feature_grid`` 64) that is 1024 pixels; a smaller grid keeps the weights and takes position
    embeddings interpolated at import.
    """

    def __init__(self, config: ModelConfig):
        seg = config.segmentation
        size = SAM_SIZES[seg.sam_variant]
        self.dtype, self.image_size = jnp.dtype(config.dtype), seg.feature_grid * size.patch_size
        self.vit = SamViT(size, seg.feature_grid, seg.decoder_dim, config.attention)

    def __call__(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b g g d"]:
        return self.vit(self.preprocess(images).astype(self.dtype))

    def preprocess(self, images: UInt8[Array, "b h w 3"]) -> Float[Array, "b H W 3"]:
        """Images as SAM's encoder wants them, float32.

        Scaled as SAM scales a tensor of images (``ResizeLongestSide.apply_image_torch``: bilinear, antialiased, corners
        not aligned); its other way, over PIL, differs by rounding to whole grey levels.
        """
        x = resize(images, (self.image_size, self.image_size), "bilinear", antialias=True)
        return (x - jnp.array(SAM_MEAN, jnp.float32)) / jnp.array(SAM_STD, jnp.float32)
