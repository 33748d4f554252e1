"""Messages of openpi's websocket protocol: msgpack with numpy arrays, and nothing that could run code.

An array is a map of the byte-string keys ``__ndarray__``, ``data``, ``dtype`` and ``shape``, a numpy scalar one of
``__npgeneric__``, ``data`` and ``dtype``. Reading trusts nothing: dtypes are the plain numbers alone, an array's bytes
fill its shape exactly, and the number of containers is bounded, so that a small message cannot take much memory.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

MAX_MESSAGE_BYTES = 2**24
"""Largest message by default: two views of 1600 x 1600 pixels fit."""
MAX_CONTAINERS = 1024
MAX_LENGTH = 1024
MAX_DIMENSIONS = 8
# Booleans, integers and floats as numpy spells them; no objects, records, texts, dates or complex numbers.
_DTYPE = re.compile(r"\|b1|[|<>=][iu][1248]|[<>=]f[248]")
_ARRAY, _SCALAR, _DATA, _TYPE, _SHAPE = b"__ndarray__", b"__npgeneric__", b"data", b"dtype", b"shape"


class ProtocolError(ValueError):
    """A message that cannot be read or holds the wrong things; one sentence for whoever sent it."""


def pack(message: Mapping[str, Any]) -> bytes:
    """The message as msgpack.

    Raises:
        TypeError, ValueError: for a value that the protocol cannot carry.
    """
    packed: bytes = msgpack.packb(message, default=_encode)
    return packed


def unpack(data: bytes | str) -> dict[str, Any]:
    """The map of names to plain values and arrays that ``data`` holds; arrays are read-only views of ``data``.

    Raises:
        ProtocolError: when it is anything else.
    """
    if isinstance(data, str):
        raise ProtocolError("The message is text; send a binary frame that holds a msgpack map")
    budget = _Budget()
    try:
        message = msgpack.unpackb(
            data,
            object_hook=budget.read_map,
            list_hook=budget.read_list,
            max_array_len=MAX_LENGTH,
            max_map_len=MAX_LENGTH,
            max_ext_len=0,
        )
    except ProtocolError:
        raise
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        # Too deep a nesting has no words of its own.
        reason = str(error) or type(error).__name__
        raise ProtocolError(f"The message is not the msgpack that openpi's clients send: {reason}") from error
    if not isinstance(message, dict) or not all(isinstance(key, str) for key in message):
        raise ProtocolError(f"The message is a {type(message).__name__}; send a map of names to values")
    return message


class _Budget:
    """Reads msgpack's maps and lists and counts them: an empty list costs one byte to send and 56 to hold."""

    def __init__(self) -> None:
        self._left = MAX_CONTAINERS

    def read_map(self, values: dict[Any, Any]) -> Any:
        self._count()
        if _ARRAY in values:
            return _decode_array(values)
        return _decode_scalar(values) if _SCALAR in values else values

    def read_list(self, values: list[Any]) -> list[Any]:
        self._count()
        return values

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise ProtocolError(f"The message holds more than {MAX_CONTAINERS} lists and maps; send numbers as arrays")


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic) and not _DTYPE.fullmatch(value.dtype.str):
        raise ValueError(f"Arrays of {value.dtype} cannot be sent; convert them to numbers")
    if isinstance(value, np.ndarray):
        return {_ARRAY: True, _DATA: value.tobytes(), _TYPE: value.dtype.str, _SHAPE: value.shape}
    if isinstance(value, np.generic):
        return {_SCALAR: True, _DATA: value.item(), _TYPE: value.dtype.str}
    raise TypeError(f"Values of {type(value).__name__} cannot be sent")


def _decode_array(values: dict[Any, Any]) -> np.ndarray:
    dtype, data, shape = _dtype(values.get(_TYPE)), values.get(_DATA), values.get(_SHAPE)
    if (
        not isinstance(shape, list)
        or len(shape) > MAX_DIMENSIONS
        or not all(type(size) is int and size >= 0 for size in shape)
    ):
        raise ProtocolError(f"An array has the shape {_shown(shape)}; give up to {MAX_DIMENSIONS} sizes")
    if not isinstance(data, bytes):
        raise ProtocolError(f"An array's data is a {type(data).__name__}; give its bytes")
    # In Python's own integers, which do not overflow.
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ProtocolError(f"An array of {dtype}{tuple(shape)} came with {len(data)} bytes; send all of it, once")
    return np.frombuffer(data, dtype).reshape(shape)


def _decode_scalar(values: dict[Any, Any]) -> np.generic:
    dtype, data = _dtype(values.get(_TYPE)), values.get(_DATA)
    if not isinstance(data, bool | int | float):
        raise ProtocolError(f"A number's data is a {type(data).__name__}; give the number")
    try:
        scalar: np.generic = dtype.type(data)
    except (OverflowError, ValueError) as error:
        raise ProtocolError(f"{_shown(data)} is no {dtype}; send it with a type that holds it") from error
    return scalar


def _dtype(name: Any) -> np.dtype:
    text = name.decode("ascii", "replace") if isinstance(name, bytes) else name
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        raise ProtocolError(
            f"An array has dtype {_shown(name)}; send booleans, integers or floats, such as '|u1' or '<f4'"
        )
    return np.dtype(text)


def _shown(value: Any) -> str:
    """A stranger's value, short enough for a sentence."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
