"""Writing a safetensors file one tensor at a time, so that a network never lies in memory twice."""

import json
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np

from pokevla_jax.interop.layouts import Shape

CODES = {
    np.dtype(np.float32): "F32",
    np.dtype(ml_dtypes.bfloat16): "BF16",
    np.dtype(np.float16): "F16",
    np.dtype(np.float64): "F64",
}
_ALIGNMENT = 8


class Announced(NamedTuple):
    """A tensor that is still to come."""

    shape: Shape
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


def write(
    path: Path,
    announced: Mapping[str, Announced],
    tensors: Iterable[tuple[str, np.ndarray]],
    progress: Callable[[int], None] = lambda count: None,
) -> None:
    """Writes ``tensors`` to ``path``; the header, which stands in front of them, is made of what was announced.

    Args:
        path: file that is overwritten; give a temporary one.
        announced: shapes and dtypes of all tensors, in the order in which they come.
        tensors: names and values in that order.
        progress: called with the bytes of each tensor that was written.

    Raises:
        ValueError: when a tensor is not what was announced.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, entry in announced.items():
        ends = [offset, offset + entry.nbytes]
        header[name] = {"dtype": CODES[entry.dtype], "shape": list(entry.shape), "data_offsets": ends}
        offset = ends[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    expected = iter(announced.items())
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for name, array in tensors:
            wanted = next(expected, None)
            if wanted != (name, (array.shape, array.dtype)):
                raise ValueError(f"{name} {array.dtype}{array.shape} came where {wanted} was announced")
            # Not by ``tofile``, whose error on a full disk does not say so.
            file.write(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)
            progress(array.nbytes)
        if left := next(expected, None):
            raise ValueError(f"{left[0]} was announced and never written")
