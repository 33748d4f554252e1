"""What an image looks like after TensorFlow has written it as a JPEG and read it again, computed with numpy alone.

TensorFlow decodes with libjpeg-turbo's fast integer transform, Pillow and OpenCV with the accurate one: their pictures
of the same file differ in two thirds of all numbers, by up to 19 levels in a rendered frame. The round trip needs no
file, because a JPEG's entropy coding loses nothing. What does lose something is done here in libjpeg-turbo's integer
arithmetic: colour conversion, chroma at half size, the accurate transform forwards, quantisation, the fast transform
backwards, chroma's "fancy" enlargement, and colours again. Sources, in libjpeg-turbo: ``jccolor.c``, ``jcsample.c``,
``jcprepct.c``, ``jfdctint.c``, ``jcdctmgr.c``, ``jddctmgr.c``, ``jidctfst.c``, ``jdsample.c``, ``jdcolor.c``.
"""

import functools

import numpy as np

from pokevla_jax.typing import Int
from pokevla_jax.typing import UInt8

Plane = Int[np.ndarray, "h w"]
Blocks = Int[np.ndarray, "8 8 n"]
"""Row, column, block: whole rows and columns of all blocks are added at once."""

# Annex K of the JPEG standard: quantisation of luma and chroma at quality 50.
_LUMA = """
16 11 10 16 24 40 51 61  12 12 14 19 26 58 60 55  14 13 16 24 40 57 69 56  14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77  24 35 55 64 81 104 113 92  49 64 78 87 103 121 120 101  72 92 95 98 112 100 103 99"""
_CHROMA = """
17 18 24 47 99 99 99 99  18 21 26 66 99 99 99 99  24 26 56 99 99 99 99 99  47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99  99 99 99 99 99 99 99 99"""


def round_trip(image: UInt8[np.ndarray, "h w 3"], quality: int = 95) -> UInt8[np.ndarray, "h w 3"]:
    """``tf.io.decode_image(tf.image.encode_jpeg(image, quality=quality))`` of an RGB image, byte by byte."""
    height, width = image.shape[:2]
    luma, blue, red = _from_rgb(image.astype(np.int32))
    luma = _code(_padded(luma, 8), _table(_LUMA, quality))[:height, :width]
    rows, columns = -(-height // 2), -(-width // 2)
    # The right edge is repeated before the chroma planes are halved, the bottom afterwards but for an odd last row.
    chroma = [_code(_padded(_halved(p), 8), _table(_CHROMA, quality))[:rows, :columns] for p in (blue, red)]
    return _to_rgb(luma, *(_doubled(plane)[:height, :width] for plane in chroma))


@functools.lru_cache(maxsize=8)
def _table(standard: str, quality: int) -> Int[np.ndarray, "8 8"]:
    scale = 200 - 2 * quality if quality >= 50 else 5000 // quality
    return np.clip((np.array(standard.split(), np.int32) * scale + 50) // 100, 1, 255).reshape(8, 8)


def _fix(value: float, bits: int) -> int:
    return int(value * (1 << bits) + 0.5)


def _from_rgb(image: Int[np.ndarray, "h w 3"]) -> tuple[Plane, Plane, Plane]:
    """Luma, and the differences of blue and red from it, 0 to 255."""
    r, g, b = image[..., 0], image[..., 1], image[..., 2]
    half = 1 << 15
    centre = (128 << 16) + half - 1
    luma = (_fix(0.29900, 16) * r + _fix(0.58700, 16) * g + _fix(0.11400, 16) * b + half) >> 16
    blue = (-_fix(0.16874, 16) * r - _fix(0.33126, 16) * g + _fix(0.50000, 16) * b + centre) >> 16
    red = (_fix(0.50000, 16) * r - _fix(0.41869, 16) * g - _fix(0.08131, 16) * b + centre) >> 16
    return luma, blue, red


def _to_rgb(luma: Plane, blue: Plane, red: Plane) -> UInt8[np.ndarray, "h w 3"]:
    blue, red = blue - 128, red - 128
    half = 1 << 15
    green = (-_fix(0.34414, 16) * blue + half - _fix(0.71414, 16) * red) >> 16
    red, blue = (_fix(1.40200, 16) * red + half) >> 16, (_fix(1.77200, 16) * blue + half) >> 16
    return np.clip(np.stack([luma + red, luma + green, luma + blue], axis=-1), 0, 255).astype(np.uint8)


def _padded(plane: Plane, multiple: int) -> Plane:
    height, width = plane.shape
    return np.pad(plane, ((0, -height % multiple), (0, -width % multiple)), mode="edge")


def _halved(plane: Plane) -> Plane:
    """Means of 2 x 2 pixels; halves are rounded down and up in turns along a row."""
    height, width = plane.shape
    plane = np.pad(plane, ((0, height % 2), (0, -width % 16)), mode="edge")
    total = plane[::2, ::2] + plane[::2, 1::2] + plane[1::2, ::2] + plane[1::2, 1::2]
    return (total + 1 + np.arange(total.shape[1], dtype=np.int32) % 2) >> 2


def _doubled(plane: Plane) -> Plane:
    """Twice the size: each pixel from its nearest source pixel by three quarters and the next by one, on both axes."""
    height, width = plane.shape
    above, below = plane[np.maximum(np.arange(height) - 1, 0)], plane[np.minimum(np.arange(height) + 1, height - 1)]
    rows = np.stack([3 * plane + above, 3 * plane + below], axis=1).reshape(2 * height, width)
    before = rows[:, np.maximum(np.arange(width) - 1, 0)]
    after = rows[:, np.minimum(np.arange(width) + 1, width - 1)]
    pairs = [(3 * rows + before + 8) >> 4, (3 * rows + after + 7) >> 4]
    return np.stack(pairs, axis=2).reshape(2 * height, 2 * width)


def _code(plane: Plane, table: Int[np.ndarray, "8 8"]) -> Plane:
    """The plane after transform, quantisation and back; its sides are multiples of eight."""
    height, width = plane.shape
    grid = (plane - 128).reshape(height // 8, 8, width // 8, 8).transpose(1, 3, 0, 2)
    coefficients = _quantised(_forward(np.ascontiguousarray(grid).reshape(8, 8, -1)), table)
    columns = _backward(_dequantised(coefficients, table))
    pixels = np.clip((_backward(columns.swapaxes(0, 1)).swapaxes(0, 1) >> 5) + 128, 0, 255)
    return pixels.reshape(8, 8, height // 8, width // 8).transpose(2, 0, 3, 1).reshape(height, width)


def _quantised(coefficients: Blocks, table: Int[np.ndarray, "8 8"]) -> Blocks:
    divisor = 8 * table[..., None]  # the forward transform is eight times too large
    return np.sign(coefficients) * ((np.abs(coefficients) + divisor // 2) // divisor)


def _dequantised(coefficients: Blocks, table: Int[np.ndarray, "8 8"]) -> Blocks:
    """Times the table and the factors that the fast transform (Arai, Agui and Nakajima's) leaves out, times four."""
    scale = np.where(np.arange(8) > 0, np.cos(np.arange(8) * np.pi / 16) * np.sqrt(2), 1)
    factors = np.rint(np.outer(scale, scale) * (1 << 14)).astype(np.int32)
    return coefficients * ((table * factors + (1 << 11)) >> 12)[..., None]


def _forward(blocks: Blocks) -> Blocks:
    """The accurate integer transform (Loeffler, Ligtenberg and Moschytz'): rows, then columns, eight times too large.

    Rows come out with two bits more than they went in with, which the columns take off again.
    """
    rows = _forward_axis(blocks.swapaxes(0, 1), 11)
    rows[[0, 4]] <<= 2
    columns = _forward_axis(rows.swapaxes(0, 1), 15)
    columns[[0, 4]] = _rounded_shift(columns[[0, 4]], 2)
    return columns


def _rounded_shift(x: Blocks, bits: int) -> Blocks:
    return (x + (1 << (bits - 1))) >> bits


def _forward_axis(d: Blocks, shift: int) -> Blocks:
    """Along the first axis, with constants of 13 bits; outputs 0 and 4, which have none, are not shifted yet."""
    s0, s1, s2, s3 = d[0] + d[7], d[1] + d[6], d[2] + d[5], d[3] + d[4]
    d0, d1, d2, d3 = d[0] - d[7], d[1] - d[6], d[2] - d[5], d[3] - d[4]
    e0, e1, e2, e3 = s0 + s3, s1 + s2, s1 - s2, s0 - s3
    z = (e2 + e3) * _fix(0.541196100, 13)
    z1, z2, z3, z4 = d3 + d0, d2 + d1, d3 + d1, d2 + d0
    z5 = (z3 + z4) * _fix(1.175875602, 13)
    z1, z2 = z1 * -_fix(0.899976223, 13), z2 * -_fix(2.562915447, 13)
    z3, z4 = z3 * -_fix(1.961570560, 13) + z5, z4 * -_fix(0.390180644, 13) + z5
    return np.stack(
        [
            e0 + e1,
            _rounded_shift(d0 * _fix(1.501321110, 13) + z1 + z4, shift),
            _rounded_shift(z + e3 * _fix(0.765366865, 13), shift),
            _rounded_shift(d1 * _fix(3.072711026, 13) + z2 + z3, shift),
            e0 - e1,
            _rounded_shift(d2 * _fix(2.053119869, 13) + z2 + z4, shift),
            _rounded_shift(z - e2 * _fix(1.847759065, 13), shift),
            _rounded_shift(d3 * _fix(0.298631336, 13) + z1 + z3, shift),
        ]
    )


def _backward(d: Blocks) -> Blocks:
    """The fast integer transform (Arai, Agui and Nakajima's) along the first axis, with constants of 8 bits.

    Products are cut, not rounded: most of what the fast transform loses.
    """
    e0, e1, e3 = d[0] + d[4], d[0] - d[4], d[2] + d[6]
    e2 = ((d[2] - d[6]) * _fix(1.414213562, 8) >> 8) - e3
    t0, t3, t1, t2 = e0 + e3, e0 - e3, e1 + e2, e1 - e2
    z13, z10, z11, z12 = d[5] + d[3], d[5] - d[3], d[1] + d[7], d[1] - d[7]
    t7 = z11 + z13
    z5 = (z10 + z12) * _fix(1.847759065, 8) >> 8
    t6 = (z10 * -_fix(2.613125930, 8) >> 8) + z5 - t7
    t5 = ((z11 - z13) * _fix(1.414213562, 8) >> 8) - t6
    t4 = (z12 * _fix(1.082392200, 8) >> 8) - z5 + t5
    return np.stack([t0 + t7, t1 + t6, t2 + t5, t3 - t4, t3 + t4, t2 - t5, t1 - t6, t0 - t7])
