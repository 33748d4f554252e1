"""Pictures of foreign data as JPEG files: passed on byte by byte where they are fit for it, else encoded anew."""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from PIL import UnidentifiedImageError

from pokevla_jax.data.codec import MAX_SIDE
from pokevla_jax.data.codec import encode_jpeg
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.typing import UInt8

_MAX_BYTES = 64 << 20
_MIN_SIDE = 8
_ORIENTATION = 0x0112


def read_jpeg(path: Path, *, size: int | None = None) -> tuple[bytes, tuple[int, int]]:
    """The picture in ``path`` as a JPEG file and its (width, height); see ``to_jpeg``."""
    if not path.is_file():
        raise Reject("missing image", str(path))
    if path.stat().st_size > _MAX_BYTES:
        raise Reject("wrong size", f"{path} has {path.stat().st_size} bytes")
    return to_jpeg(path.read_bytes(), str(path), size=size)


def to_jpeg(data: bytes, name: str, *, size: int | None = None) -> tuple[bytes, tuple[int, int]]:
    """An encoded picture as a JPEG file, and its (width, height) as it was.

    Args:
        data: any format that Pillow reads.
        name: shown in complaints.
        size: side to which it is reduced for training (area average, the longer side; never enlarged).

    Raises:
        Reject: when it cannot be decoded whole, or is too small or too large.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            width, height = image.size
            if not _MIN_SIDE <= min(width, height) <= max(width, height) <= MAX_SIDE:
                raise Reject("wrong size", f"{name} is {width}x{height}; {_MIN_SIDE} to {MAX_SIDE} a side are read")
            upright = image.getexif().get(_ORIENTATION, 1) == 1
            kept = image.format == "JPEG" and image.mode in ("RGB", "L") and upright
            # Reads every pixel, so that a truncated file is noticed now.
            image.load()
            if kept and (size is None or max(width, height) <= size):
                return data, (width, height)
            if not upright:
                raise Reject("malformed", f"{name} is stored rotated; its labels may mean either side")
            pixels = np.asarray(image.convert("RGB"))
    except Reject:
        raise
    except UnidentifiedImageError as error:
        raise Reject("broken image", f"{name} is no picture") from error
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Reject("broken image", f"{name}: {error}") from error
    return encode_jpeg(reduced(pixels, size)), (width, height)


def reduced(pixels: UInt8[np.ndarray, "h w 3"], size: int | None) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with a longer side of ``size``, by area average; itself where it is no longer than that."""
    height, width = pixels.shape[:2]
    if size is None or max(height, width) <= size:
        return pixels
    scale = size / max(height, width)
    target = (max(round(width * scale), 1), max(round(height * scale), 1))
    return np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BOX))
