"""Resizing as ``torch.nn.functional.interpolate`` does it: small weight matrices applied along rows and columns.

``jax.image`` has another cubic kernel (a = -0.5 instead of -0.75) and no ``align_corners``; networks that were trained
on PyTorch's resizes see the difference. The matrices are made with numpy from static sizes, so that inside ``jax.jit``
a resize is two matrix products. Source: ATen's ``UpSample`` kernels.
"""

import functools
from typing import Literal

import jax.numpy as jnp
import numpy as np

from pokevla_jax.typing import Array
from pokevla_jax.typing import Float

Method = Literal["bilinear", "bicubic"]

# PyTorch's cubic coefficient; with antialiasing PyTorch follows PIL and uses the other one.
CUBIC = -0.75
CUBIC_ANTIALIASED = -0.5


@functools.cache
def weights(
    source: int, target: int, method: Method, *, align_corners: bool = False, antialias: bool = False
) -> Float[np.ndarray, "target source"]:
    """The matrix that resizes ``source`` samples along one axis to ``target``, float32; rows sum to 1.

    Args:
        source: number of samples given.
        target: number of samples wanted.
        method: the kernel.
        align_corners: whether the first and last samples of both coincide, instead of the borders around them.
        antialias: whether the kernel is widened where it shrinks; only without ``align_corners``, as in PyTorch.
    """
    if align_corners and antialias:
        raise ValueError("antialias goes with align_corners=False only, as in PyTorch")
    places = np.arange(target, dtype=np.float64)
    if align_corners:
        centers = places * ((source - 1) / (target - 1) if target > 1 else 0.0)
    else:
        centers = (places + 0.5) * (source / target) - 0.5
    if antialias:
        return _antialiased(centers, source, target, method)
    if method == "bilinear":  # Linear between neighbours, constant beyond the border.
        centers = np.clip(centers, 0, source - 1)
    first = np.floor(centers).astype(int)
    radius = 1 if method == "bilinear" else 2
    matrix = np.zeros((target, source))
    for tap in range(1 - radius, radius + 1):
        values = _kernel(centers - (first + tap), method, CUBIC)
        # Beyond the border the nearest sample is repeated.
        np.add.at(matrix, (np.arange(target), np.clip(first + tap, 0, source - 1)), values)
    matrix = matrix.astype(np.float32)
    matrix.flags.writeable = False  # shared by all callers
    return matrix


def _antialiased(centers: np.ndarray, source: int, target: int, method: Method) -> Float[np.ndarray, "target source"]:
    """The kernel stretched by the shrinking factor; beyond the border its weights are left out, not repeated."""
    stretch = max(source / target, 1.0)
    distance = (np.arange(source) - centers[:, None]) / stretch
    matrix = _kernel(distance, method, CUBIC_ANTIALIASED)
    matrix = (matrix / matrix.sum(-1, keepdims=True)).astype(np.float32)
    matrix.flags.writeable = False
    return matrix


def _kernel(distance: np.ndarray, method: Method, a: float) -> np.ndarray:
    x = np.abs(distance)
    if method == "bilinear":
        return np.maximum(1 - x, 0)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return np.where(x <= 1, near, np.where(x < 2, far, 0))


def resize(
    x: Float[Array, "... h w c"],
    size: tuple[int, int],
    method: Method,
    *,
    align_corners: bool = False,
    antialias: bool = False,
) -> Float[Array, "... h2 w2 c"]:
    """Channels-last maps resized to ``size`` (rows, columns), float32."""
    options = {"align_corners": align_corners, "antialias": antialias}
    rows = weights(x.shape[-3], size[0], method, **options)
    columns = weights(x.shape[-2], size[1], method, **options)
    # The reduced precision of a TPU's matrix products would cost more than the last of eight bits of a pixel.
    x = jnp.einsum("ph,...hwc->...pwc", rows, x.astype(jnp.float32), precision="highest")
    return jnp.einsum("qw,...pwc->...pqc", columns, x, precision="highest")


def resample_positions(positions: Float[np.ndarray, "p d"], grid: int) -> Float[np.ndarray, "q d"]:
    """Position embeddings of a square grid of patches (row-major) for a grid of another side, float32.

    As timm resamples those of a checkpoint: bicubic with antialiasing. Embeddings of class or register tokens are not
    part of ``positions``.

    Raises:
        ValueError: when ``positions`` are not those of a square grid.
    """
    source = round(len(positions) ** 0.5)
    if source**2 != len(positions):
        raise ValueError(f"{len(positions)} position embeddings are not those of a square grid of patches")
    if source == grid:
        return np.asarray(positions, np.float32)
    matrix = weights(source, grid, "bicubic", antialias=True)
    square = np.asarray(positions, np.float32).reshape(source, source, -1)
    return np.einsum("ph,qw,hwd->pqd", matrix, matrix, square, optimize=True).reshape(grid**2, -1)


def resample_relative(table: Float[np.ndarray, "o k"], length: int) -> Float[np.ndarray, "o2 k"]:
    """SAM's table of relative positions (a row per offset, 2 * side - 1) for another side, linearly, float32."""
    if len(table) == length:
        return np.asarray(table, np.float32)
    return weights(len(table), length, "bilinear") @ np.asarray(table, np.float32)
