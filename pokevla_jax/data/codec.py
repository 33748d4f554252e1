"""Encoding of one stored frame: JPEG views, PNG masks and 16-bit PNG depth inside one msgpack map.

Records may come from anywhere, so decoding trusts nothing: no pickle, image sizes are read from the headers and checked
before any pixel is decoded, and every complaint is a ``DataError`` that the caller completes with file and index.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import cv2
import msgpack
import numpy as np

from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

FORMAT = 1
"""Version of the frame entry; ``decode_frame`` refuses others by name."""

MAX_ENTRY_BYTES = 64 << 20
MAX_SIDE = 4096
FULL_COLOUR_BELOW = 192
DEPTH_UNIT = 1e-3
"""Metres per step of the stored depth: 16 bits reach 65.5 m with an error of at most 0.5 mm; 0 means no surface."""

# Samples run in threads and worker processes already; OpenCV's own pool would only fight with them for the cores.
cv2.setNumThreads(0)


class DataError(ValueError):
    """Stored data that cannot be used; the message names what, where, and what to do."""


@dataclass(frozen=True)
class Frame:
    """What the cameras saw at one step: per view, RGB and optionally the object mask and metric depth.

    Attributes:
        images: uint8 [h, w, 3] per view.
        masks: uint8 [h, w] per view, 1 where an object of interest is visible.
        depth: float32 [h, w] per view, metres along the optical axis; 0 where no surface is in range.
    """

    images: Mapping[str, UInt8[np.ndarray, "h w 3"]]
    masks: Mapping[str, UInt8[np.ndarray, "h w"]] | None = None
    depth: Mapping[str, Float[np.ndarray, "h w"]] | None = None


def encode_frame(frame: Frame, *, jpeg_quality: int = 95) -> bytes:
    """Serialises a frame; images lose what JPEG loses, masks nothing, depth at most 0.5 mm.

    Small images keep full colour resolution (``chroma``).
    """
    entry: dict = {"format": FORMAT, "images": {}}
    for view, image in frame.images.items():
        _expect(image, np.uint8, 3, f"image of view {view!r}")
        entry["images"][view] = encode_jpeg(image, quality=jpeg_quality)
    # Level 1 decodes fastest, and encodes four times as fast as the default for 15 % more bytes.
    png = [cv2.IMWRITE_PNG_COMPRESSION, 1]
    if frame.masks is not None:
        for view, mask in frame.masks.items():
            _expect(mask, np.uint8, 2, f"mask of view {view!r}")
        entry["masks"] = {view: cv2.imencode(".png", mask, png)[1].tobytes() for view, mask in frame.masks.items()}
    if frame.depth is not None:
        for view, depth in frame.depth.items():
            _expect(depth, np.float32, 2, f"depth of view {view!r}")
        entry["depth"] = {
            view: cv2.imencode(".png", _quantise(depth), png)[1].tobytes() for view, depth in frame.depth.items()
        }
    return msgpack.packb(entry)


def chroma(size: tuple[int, int]) -> Literal["4:4:4", "4:2:0"]:
    """The colour resolution that an image of this size is stored with.

    Halving it, as JPEG files and RLDS do, saves a quarter of the decoding and a third of the bytes for 1.2 dB of a
    photograph's 42 at 224 pixels; at 128 pixels it would cost a rendered scene 6 dB.
    """
    return "4:4:4" if min(size) < FULL_COLOUR_BELOW else "4:2:0"


def encode_jpeg(image: UInt8[np.ndarray, "h w 3"], *, quality: int = 95) -> bytes:
    """An RGB image as a JPEG file, its colour as ``chroma`` says."""
    full = chroma(image.shape[:2]) == "4:4:4"
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444 if full else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    return cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), options)[1].tobytes()


def frame_jpegs(data: bytes) -> dict[str, bytes]:
    """The JPEG files of a stored frame, not decoded; raises ``DataError`` as ``decode_frame`` does."""
    images = _entry(data)["images"]
    for view, image in images.items():
        if not isinstance(image, bytes) or jpeg_size(image) is None:
            raise DataError(f"holds no JPEG as image of view {view!r}")
    return images


def decode_frame(data: bytes, *, masks: bool = True, depth: bool = True) -> Frame:
    """The frame stored in ``data``; parts that the caller does not need are not decoded.

    Raises:
        DataError: when the entry is not a frame of this format.
    """
    entry = _entry(data)
    return Frame(
        images={view: _decode(image, "JPEG", f"image of view {view!r}") for view, image in entry["images"].items()},
        masks=_decode_maps(entry, "masks", np.uint8) if masks else None,
        depth=_decode_depth(entry) if depth else None,
    )


def _entry(data: bytes) -> dict:
    """The map that a frame is stored as."""
    if len(data) > MAX_ENTRY_BYTES:
        raise DataError(f"holds {len(data)} bytes, more than the limit of {MAX_ENTRY_BYTES}")
    try:
        entry = msgpack.unpackb(data, max_str_len=256, max_array_len=16, max_map_len=32)
    except (ValueError, msgpack.UnpackException) as error:
        raise DataError(f"is not a msgpack frame ({error})") from error
    if not isinstance(entry, dict) or not isinstance(entry.get("images"), dict):
        raise DataError("is not a frame: it has no images")
    if entry.get("format") != FORMAT:
        raise DataError(f"has frame format {entry.get('format')!r}, this version reads {FORMAT}")
    return entry


def decode_jpeg(data: bytes, what: str) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of a JPEG file, RGB; raises ``DataError`` naming ``what`` where it is broken or too large."""
    return _decode(data, "JPEG", what)


def decode_mask(data: bytes, what: str) -> UInt8[np.ndarray, "h w"]:
    """Pixels of an 8-bit grey PNG file; raises ``DataError`` naming ``what`` where it is anything else."""
    mask = _decode(data, "PNG", what)
    if mask.dtype != np.uint8 or mask.ndim != 2:
        raise DataError(f"has a {what} of {mask.dtype}{mask.shape}, expected uint8 [h, w]")
    return mask


def _decode_maps(entry: dict, part: str, dtype: type) -> dict[str, np.ndarray] | None:
    if part not in entry:
        return None
    if not isinstance(entry[part], dict):
        raise DataError(f"has {part} that are not a map of views")
    maps = {view: _decode(data, "PNG", f"{part} of view {view!r}") for view, data in entry[part].items()}
    for view, array in maps.items():
        if array.dtype != dtype or array.ndim != 2:
            raise DataError(
                f"has {part} of view {view!r} as {array.dtype}{array.shape}, expected {dtype.__name__} [h, w]"
            )
    return maps


def _decode_depth(entry: dict) -> dict[str, np.ndarray] | None:
    maps = _decode_maps(entry, "depth", np.uint16)
    return None if maps is None else {view: depth * np.float32(DEPTH_UNIT) for view, depth in maps.items()}


def _quantise(depth: np.ndarray) -> np.ndarray:
    steps = np.rint(depth.astype(np.float64) / DEPTH_UNIT)
    return np.where((steps > 0) & (steps <= np.iinfo(np.uint16).max), steps, 0).astype(np.uint16)


def _decode(data: object, kind: str, what: str) -> np.ndarray:
    """Pixels of a JPEG (RGB) or PNG (as stored) whose header states a permitted size."""
    if not isinstance(data, bytes) or (size := (jpeg_size if kind == "JPEG" else _png_size)(data)) is None:
        raise DataError(f"holds no {kind} as {what}")
    if max(size) > MAX_SIDE or min(size) < 1:
        raise DataError(f"states {size[1]}x{size[0]} pixels for the {what}; 1 to {MAX_SIDE} a side are read")
    flags = cv2.IMREAD_COLOR_RGB if kind == "JPEG" else cv2.IMREAD_UNCHANGED
    try:
        array = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise DataError(f"holds a broken {kind} as {what} ({error.err})") from error
    if array is None or array.shape[:2] != size:
        raise DataError(f"holds a broken {kind} as {what}")
    return array


def _png_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from the IHDR chunk, if the file consists of the chunks that ``encode_frame`` writes.

    OpenCV allocates what a chunk's length field claims, up to 4 GiB, before it looks at the file's end; and other
    chunks (animations, profiles) would be code paths that no frame needs.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 24:
        return None
    position = 8
    while position < len(data):
        length, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        position += 12 + length
        if kind not in (b"IHDR", b"IDAT", b"IEND") or position > len(data):
            return None
    width, height = struct.unpack(">II", data[16:24])
    return height, width


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(height, width) from the start-of-frame segment."""
    if data[:2] != b"\xff\xd8":
        return None
    position = 2
    while position + 9 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], int.from_bytes(data[position + 2 : position + 4], "big")
        # Start of frame is 0xC0-0xCF, less the three that define tables.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return struct.unpack(">HH", data[position + 5 : position + 9])
        position += 2 + length
    return None


def _expect(array: np.ndarray, dtype: type, ndim: int, what: str) -> None:
    if array.dtype != dtype or array.ndim != ndim or (ndim == 3 and array.shape[2] != 3):
        shape = "[h, w, 3]" if ndim == 3 else "[h, w]"
        raise DataError(f"The {what} is {array.dtype}{array.shape}; store {np.dtype(dtype)} {shape}")
