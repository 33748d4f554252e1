"""Rows that several parts share."""

from pokevla_jax.interop.layouts import LINEAR
from pokevla_jax.interop.layouts import SAME
from pokevla_jax.interop.layouts import VECTOR
from pokevla_jax.interop.layouts import Layout
from pokevla_jax.interop.table import Row
from pokevla_jax.interop.table import Rows


def norm(ours: str, theirs: str) -> Rows:
    """A LayerNorm, over a vector or over the channels of a map."""
    return (Row(f"{ours}/scale", f"{theirs}.weight", SAME), Row(f"{ours}/bias", f"{theirs}.bias", SAME))


def dense(ours: str, theirs: str, kernel: Layout = LINEAR) -> Rows:
    """A linear map or convolution with a bias."""
    return (Row(f"{ours}/kernel", f"{theirs}.weight", kernel), Row(f"{ours}/bias", f"{theirs}.bias", VECTOR))
