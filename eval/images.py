"""What published evaluators do to rendered images before a policy sees them, without the libraries they use.

OpenVLA and its descendants pass every image through TensorFlow: a JPEG round trip, a resize with Lanczos' kernel, and,
for policies trained with random crops, the central crop of 90 % of the area. Here the same bytes come from Pillow and
numpy: the arithmetic is TensorFlow's, in float32 and in its order, because a pixel that rounds the other way is another
input. openpi's evaluator resizes with Pillow itself.
"""

import functools
import math
from typing import Literal

import numpy as np
from PIL import Image

from eval import jpeg
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int
from pokevla_jax.typing import UInt8

Preprocessing = Literal["native", "openvla", "openvla-crop", "openpi"]
"""``native``: as rendered. ``openvla``: to 224 pixels as OpenVLA's evaluators do, ``openvla-crop``: and then the
central crop that they leave to the policy's side. ``openpi``: to 224 pixels as its client does."""

SIZE = 224
"""``OPENVLA_IMAGE_SIZE`` and openpi's ``resize_size``."""
CROP_AREA = 0.9
LANCZOS_RADIUS = 3

Frame = UInt8[np.ndarray, "h w 3"]


def prepare(images: UInt8[np.ndarray, "v h w 3"], how: Preprocessing) -> UInt8[np.ndarray, "v s s 3"]:
    """Every view after one of the evaluators' preprocessings."""
    if how == "native":
        return images
    if how == "openpi":
        return np.stack([resize_with_pad(image, SIZE) for image in images])
    resized = [openvla_resize(image, SIZE) for image in images]
    return np.stack([center_crop(image, CROP_AREA) for image in resized] if how == "openvla-crop" else resized)


def openvla_resize(image: Frame, size: int) -> Frame:
    """The image at ``size`` square as OpenVLA's ``resize_image_for_policy`` makes it, byte by byte.

    ``tf.image.encode_jpeg``, ``tf.io.decode_image``, ``tf.image.resize(..., "lanczos3", antialias=True)``, rounded and
    clipped to uint8.
    """
    return np.clip(np.rint(lanczos_resize(jpeg.round_trip(image), size)), 0, 255).astype(np.uint8)


def lanczos_resize(image: Frame, size: int) -> Float[np.ndarray, "s s 3"]:
    """``tf.image.resize(image, (size, size), "lanczos3", antialias=True)``, float32.

    Source: TensorFlow's ``scale_and_translate_op.cc``: rows first, then columns, each output the sum of its source
    pixels times their weights, added one after the other.
    """
    down = _weighted_sum(image.astype(np.float32), *_spans(image.shape[0], size))
    return _weighted_sum(down.transpose(1, 0, 2), *_spans(image.shape[1], size)).transpose(1, 0, 2)


def _weighted_sum(
    rows: Float[np.ndarray, "n m 3"], starts: Int[np.ndarray, " s"], weights: Float[np.ndarray, "s k"]
) -> Float[np.ndarray, "s m 3"]:
    total = np.zeros((len(starts), *rows.shape[1:]), np.float32)
    for tap in range(weights.shape[1]):
        # Weights beyond the last row are zero; the row that stands in for it is then irrelevant.
        source = rows[np.minimum(starts + tap, len(rows) - 1)]
        total += source * weights[:, tap, None, None]
    return total


@functools.lru_cache(maxsize=32)
def _spans(source: int, target: int) -> tuple[Int[np.ndarray, " s"], Float[np.ndarray, "s k"]]:
    """For each output pixel the first source pixel of its kernel, and the weights from there on (``ComputeSpans``)."""
    f = np.float32
    inverse = f(1.0) / (f(target) / f(source))
    kernel_scale = max(inverse, f(1.0))
    reach = f(LANCZOS_RADIUS) * kernel_scale
    count = min(2 * math.ceil(reach) + 1, source)
    starts = np.zeros(target, np.int64)
    weights = np.zeros((target, count), np.float32)
    for x in range(target):
        centre = (f(x) + f(0.5)) * inverse
        first = min(max(math.ceil(centre - reach - f(0.5)), 0), source - 1)
        last = min(max(math.floor(centre + reach - f(0.5)), 0), source - 1)
        kernel = [_lanczos(abs((f(i) + f(0.5) - centre) * (f(1.0) / kernel_scale))) for i in range(first, last + 1)]
        total = f(0.0)
        for value in kernel:
            total += value
        starts[x] = first
        weights[x, : len(kernel)] = np.array(kernel, np.float32) * (f(1.0) / total)
    return starts, weights


def _lanczos(x: np.float32) -> np.float32:
    """Lanczos' kernel at ``x`` >= 0, in the steps of ``sampling_kernels.h``."""
    f = np.float32
    radius, pi = f(LANCZOS_RADIUS), f(math.pi)
    if x > radius:
        return f(0.0)
    if x <= f(1e-3):
        return f(1.0)
    return radius * _sinf(pi * x) * _sinf(pi * x / radius) / (pi * pi * x * x)


def _sinf(x: np.float32) -> np.float32:
    """C's ``sinf`` as glibc has computed it since 2.28, for |x| < 120: in double precision, rounded once.

    Its last bit is not always the nearest to the sine, and TensorFlow's weights are made with it. Source: glibc's
    ``sysdeps/ieee754/flt-32/s_sinf.c`` and ``s_sincosf_data.c``.
    """
    quarter = math.floor(float(x) / (math.pi / 2) + 0.5)
    y = float(x) - quarter * (math.pi / 2)
    y2 = y * y
    if quarter % 2 == 0:
        s1, s2, s3 = -0.16666654943701084, 0.008332178146138854, -0.00019517298981385725
        value = (y + y * y2 * s1) + y * y2 * y2 * (s2 + y2 * s3)
    else:
        c1, c2, c3, c4 = -0.49999999725108224, 0.041666623324344516, -0.001388676379437604, 2.4390450703564542e-05
        value = ((1.0 + y2 * c1) + y2 * y2 * c2) + y2 * y2 * y2 * (c3 + y2 * c4)
    return np.float32(-value if quarter % 4 >= 2 else value)


def center_crop(image: Frame, area: float) -> Frame:
    """The middle of the image with ``area`` of its surface, enlarged again, as OpenVLA's ``center_crop_image``.

    ``tf.image.crop_and_resize`` (bilinear; the crop's corners fall on the output's corner pixels) in float32, clipped
    and converted with TensorFlow's rounding.
    """
    f = np.float32
    height, width = image.shape[:2]
    # convert_image_dtype(uint8 -> float32) multiplies by 1 / 255; the way back multiplies by 255.5 and cuts off.
    pixels = image.astype(np.float32) * f(1.0 / 255.0)
    top, bottom, row_share = _crop_positions(height, area)
    left, right, column_share = _crop_positions(width, area)
    share = column_share[None, :, None]
    upper = pixels[top][:, left] + (pixels[top][:, right] - pixels[top][:, left]) * share
    lower = pixels[bottom][:, left] + (pixels[bottom][:, right] - pixels[bottom][:, left]) * share
    crop = upper + (lower - upper) * row_share[:, None, None]
    return np.minimum(np.clip(crop, 0, 1) * f(255.5), f(255)).astype(np.uint8)


def _crop_positions(
    size: int, area: float
) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Source pixels before and after each output pixel, and how far between them it lies."""
    f = np.float32
    side = np.sqrt(f(area))
    start = (f(1.0) - side) / f(2.0)
    step = (start + side - start) * f(size - 1) / f(size - 1)
    position = start * f(size - 1) + np.arange(size, dtype=np.float32) * step
    before = np.floor(position)
    return before.astype(np.int64), np.ceil(position).astype(np.int64), position - before


def resize_with_pad(image: Frame, size: int) -> Frame:
    """The image at ``size`` square without distortion, black around it, as ``openpi_client.image_tools`` makes it."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    ratio = max(width / size, height / size)
    inner_height, inner_width = int(height / ratio), int(width / ratio)
    inner = Image.fromarray(image).resize((inner_width, inner_height), Image.Resampling.BILINEAR)
    canvas = np.zeros((size, size, 3), np.uint8)
    top, left = (size - inner_height) // 2, (size - inner_width) // 2
    canvas[top : top + inner_height, left : left + inner_width] = np.asarray(inner)
    return canvas
