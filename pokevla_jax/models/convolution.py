"""The few convolutions of the mask branch, over channels-last maps.

One whose stride equals its kernel is a reshape and a matrix product: XLA's CPU backend would run the gradients of a
strided convolution far slower, and other backends do not care.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax import sharding
from pokevla_jax.models.layers import ZEROS
from pokevla_jax.models.layers import Init
from pokevla_jax.models.layers import Linear
from pokevla_jax.models.layers import add_bias
from pokevla_jax.models.layers import parameter
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float


def space_to_depth(x: Float[Array, "b h w c"], size: int) -> Float[Array, "b h/size w/size size*size*c"]:
    """Non-overlapping square patches, each flattened as (row, column, channel)."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // size, size, w // size, size, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // size, w // size, size * size * c)


class PatchConv(nnx.Module):
    """A convolution with stride = kernel size; the kernel's input axis is flattened as (row, column, channel)."""

    def __init__(self, inputs: int, outputs: int, size: int):
        self.size = size
        self.linear = Linear(size * size * inputs, outputs, axes=(None, "embed"))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h/size w/size o"]:
        return self.linear(space_to_depth(x, self.size))


class UpConv(nnx.Module):
    """A transposed convolution with stride 2 and kernel 2: every cell becomes 2 x 2 cells of its own.

    They stay apart, so that their channels keep filling a TPU's lanes; ``assemble`` makes a map of them in the end.
    """

    def __init__(self, inputs: int, outputs: int):
        self.linear = Linear(inputs, (2, 2, outputs), axes=("embed", None, None, None), use_bias=False)
        self.bias = parameter(ZEROS, (outputs,), (None,))

    def __call__(self, x: Float[Array, "b ... i"]) -> Float[Array, "b ... 4*o"]:
        """Along the channels the four new cells of each cell, row by row, with all channels of each."""
        y = self.linear(x)
        return add_bias(y.reshape(*x.shape[:-1], -1), jnp.tile(self.bias[...], 4))


def assemble(cells: Float[Array, "b 4 4 z"], grid: int) -> Float[Array, "b 4*grid 4*grid"]:
    """The map of what two ``UpConv`` made of ``grid`` x ``grid`` cells: first their 2 x 2, then the 2 x 2 of those."""
    b = cells.shape[0]
    x = cells.reshape(b, 2, 2, 2, 2, grid, grid).transpose(0, 5, 1, 3, 6, 2, 4)
    return x.reshape(b, 4 * grid, 4 * grid)


class Conv3x3(nnx.Module):
    """A 3 x 3 convolution with zero padding; the kernel is [row, column, input, output]."""

    def __init__(self, inputs: int, outputs: int, *, use_bias: bool = True):
        self.kernel = parameter(Init(std=(9 * inputs) ** -0.5), (3, 3, inputs, outputs), (None, None, None, "embed"))
        self.bias = parameter(ZEROS, (outputs,), ("embed",)) if use_bias else None

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        layout = ("NHWC", "HWIO", "NHWC")
        kernel = sharding.gather(self.kernel[...], (None, None, None, "embed"), x.dtype)
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
        y = sharding.constrain(y, "batch", None, None, "embed")
        return y if self.bias is None else add_bias(y, self.bias[...])
