"""How one array lies in PyTorch and how it lies here; each layout is a bijection, and its inverse stands beside it.

Everything works on numpy arrays of any dtype, moves no value and, where numpy can, copies nothing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """A reordering of axes.

    Attributes:
        name: what a table of names prints.
        torch_shape: our shape -> PyTorch's shape.
        to_torch: our array -> PyTorch's array.
        from_torch: PyTorch's array and our shape -> our array.
    """

    name: str
    torch_shape: Callable[[Shape], Shape]
    to_torch: Callable[[np.ndarray], np.ndarray]
    from_torch: Callable[[np.ndarray, Shape], np.ndarray]


def _reshape(name: str, torch_shape: Callable[[Shape], Shape]) -> Layout:
    return Layout(
        name,
        torch_shape,
        to_torch=lambda x: x.reshape(torch_shape(x.shape)),
        from_torch=lambda x, shape: x.reshape(shape),
    )


SAME = _reshape("same", lambda shape: shape)
"""Norms, embeddings, learned tokens."""

VECTOR = _reshape("flattened", lambda shape: (math.prod(shape),))
"""Biases: ours keep (heads, head_dim) or (3, heads, head_dim) apart; a scalar of ours is a vector of one."""

BATCHED = _reshape("leading 1", lambda shape: (1, *shape))
"""Position embeddings and tokens that PyTorch stores with a batch axis of one."""


def linear(num_inputs: int = 1) -> Layout:
    """``kernel [inputs..., outputs...]`` <-> ``weight [outputs, inputs]``, each side's axes flattened in PyTorch.

    A fused projection to (q, k, v) has outputs (3, heads, head_dim): PyTorch's rows are q's, then k's, then v's.
    """

    def sizes(shape: Shape) -> tuple[int, int]:
        return math.prod(shape[:num_inputs]), math.prod(shape[num_inputs:])

    return Layout(
        "transposed",
        torch_shape=lambda shape: sizes(shape)[::-1],
        to_torch=lambda x: x.reshape(sizes(x.shape)).T,
        from_torch=lambda x, shape: x.T.reshape(shape),
    )


LINEAR = linear()
LINEAR_FROM_HEADS = linear(2)
"""``[heads, head_dim, d]`` <-> ``[d, heads * head_dim]``."""


def patches(channels: int) -> Layout:
    """A convolution with stride = kernel size: ``[row * column * channel, o]`` <-> ``[o, channel, row, column]``."""

    def side(shape: Shape) -> int:
        return math.isqrt(shape[0] // channels)

    return Layout(
        "patches",
        torch_shape=lambda shape: (shape[1], channels, side(shape), side(shape)),
        to_torch=lambda x: x.reshape(side(x.shape), side(x.shape), channels, -1).transpose(3, 2, 0, 1),
        from_torch=lambda x, shape: x.transpose(2, 3, 1, 0).reshape(shape),
    )


CONV = Layout(
    "convolution",
    torch_shape=lambda shape: (shape[3], shape[2], shape[0], shape[1]),
    to_torch=lambda x: x.transpose(3, 2, 0, 1),
    from_torch=lambda x, shape: x.transpose(2, 3, 1, 0),
)
"""``[row, column, i, o]`` <-> ``[o, i, row, column]``."""

CONV_1X1 = Layout(
    "1 x 1 convolution",
    torch_shape=lambda shape: (shape[1], shape[0], 1, 1),
    to_torch=lambda x: x.T[:, :, None, None],
    from_torch=lambda x, shape: x[:, :, 0, 0].T,
)
"""A linear map of ours, a convolution there."""

CONV_TRANSPOSED = Layout(
    "transposed convolution",
    torch_shape=lambda shape: (shape[0], shape[3], shape[1], shape[2]),
    to_torch=lambda x: x.transpose(0, 3, 1, 2),
    from_torch=lambda x, shape: x.transpose(0, 2, 3, 1),
)
"""Stride = kernel: ``[i, row, column, o]`` <-> ``[i, o, row, column]``; every input cell paints its own square."""
