"""Sensor noise: fifty corruptions of the agent view, five kinds in ten severities each.

They follow LIBERO-Plus's code (after ImageNet-C's), draw for draw, so that the same random numbers give the same
picture. Motion blur is ImageMagick 6's, rewritten. Kernels are in pixels, meant for pictures of 256; pictures are
those of the simulator as OpenGL gives them, bottom row first.
"""

from collections.abc import Callable

import numpy as np
from scipy import ndimage

from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

Image = UInt8[np.ndarray, "h w 3"]
# The benchmark's global generator, but one's own: the draws of the legacy interface are part of what is reproduced.
Draws = np.random.RandomState

COUNT = 50
SEVERITIES = 10
FOG_MAP = 256

# Radius and sigma.
_MOTION = ((5, 2), (8, 3), (10, 4), (12, 5), (15, 6), (18, 8), (20, 10), (25, 12), (30, 15), (35, 20))
# Largest zoom factor (excluded) and step; the first factor is 1.
_ZOOM = tuple(
    zip(
        (1.11, 1.16, 1.21, 1.26, 1.31, 1.36, 1.41, 1.46, 1.51, 1.56),
        (0.01, 0.01, 0.02, 0.02, 0.03, 0.01, 0.01, 0.02, 0.02, 0.03),
        strict=True,
    )
)
# Strength and decay of the roughness.
_FOG = tuple(
    zip(
        (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
        (3, 2.8, 2.5, 2.2, 2.0, 1.8, 1.6, 1.5, 1.4, 1.3),
        strict=True,
    )
)
# Sigma of the blur, largest displacement, rounds.
_GLASS = (
    *((0.5, 1, 3), (0.7, 1, 3), (0.9, 2, 3), (1.0, 2, 2), (1.1, 3, 2)),
    *((1.3, 3, 2), (1.5, 4, 2), (1.8, 4, 2), (2.2, 5, 1), (2.5, 5, 1)),
)


def describe(number: int) -> tuple[str, int]:
    """Kind and severity (1 to 10) of noise ``number``.

    Raises:
        SimulationError: for a number that does not exist.
    """
    if not 1 <= number <= COUNT:
        raise SimulationError(f"LIBERO-Plus has noises 1 to {COUNT}, not {number}")
    kind, severity = divmod(number - 1, SEVERITIES)
    return tuple(_KINDS)[kind], severity + 1


def is_fog(number: int) -> bool:
    """Whether noise ``number`` (0 for none) is fog, which has a largest picture."""
    return number > 0 and describe(number)[0] == "fog"


def corrupt(image: Image, number: int, draws: Draws) -> Image:
    """``image`` with noise ``number``.

    Args:
        image: as OpenGL stores it (bottom row first).
        number: 1 to 50.
        draws: random numbers; advanced.

    Raises:
        SimulationError: for a noise that does not exist, or fog on a picture larger than its map.
    """
    kind, severity = describe(number)
    return _KINDS[kind](image, severity, draws)


def draws_of(seed: int, step: int) -> Draws:
    """The random numbers of one control step of one episode: independent of which steps are looked at."""
    return Draws(np.random.MT19937(np.random.SeedSequence([seed, step])))


def motion_blur(image: Image, severity: int, draws: Draws) -> Image:
    """Smeared along one direction, 45 degrees at most from the horizontal."""
    radius, sigma = _MOTION[severity - 1]
    return _magick_motion_blur(image, radius, sigma, draws.uniform(-45, 45))


def _magick_motion_blur(image: Image, radius: float, sigma: float, angle: float) -> Image:
    """ImageMagick 6's MotionBlurImage: a one-sided Gaussian along ``angle`` (degrees), edges repeated, 16 bits deep."""
    width = 2 * int(np.ceil(radius)) + 1
    steps = np.arange(width)
    weights = np.exp(-(steps**2) / (2 * sigma**2))
    weights /= weights.sum()
    direction = np.deg2rad(angle)
    right = np.ceil(steps * np.cos(direction) - 0.5).astype(int)
    down = np.ceil(steps * np.sin(direction) - 0.5).astype(int)
    height, length = image.shape[:2]
    wide = image.astype(np.float64) * 257.0
    total = np.zeros_like(wide)
    for weight, dx, dy in zip(weights, right, down, strict=True):
        rows = np.clip(np.arange(height) + dy, 0, height - 1)
        columns = np.clip(np.arange(length) + dx, 0, length - 1)
        total += weight * wide[rows[:, None], columns]
    return (np.clip(total + 0.5, 0, 65535).astype(np.uint32) // 257).astype(np.uint8)


def gaussian_blur(image: Image, severity: int, draws: Draws) -> Image:
    """Blurred with a standard deviation of ``severity`` pixels."""
    return _to_bytes(np.clip(_gaussian(image / 255.0, severity), 0, 1) * 255)


def zoom_blur(image: Image, severity: int, draws: Draws) -> Image:
    """The mean of the picture and its enlargements about the centre."""
    end, step = _ZOOM[severity - 1]
    factors = np.arange(1, end, step)
    original = (image / 255.0).astype(np.float32)
    total = np.zeros_like(original)
    for factor in factors:
        total += _zoomed(original, factor)
    return _to_bytes(np.clip((original + total) / (len(factors) + 1), 0, 1) * 255)


def _zoomed(image: Float[np.ndarray, "h w 3"], factor: float) -> Float[np.ndarray, "h w 3"]:
    """The middle of the picture, enlarged to its size."""
    height = image.shape[0]
    crop = int(np.ceil(height / float(factor)))
    top = (height - crop) // 2
    middle = image[top : top + crop, top : top + crop]
    # Channel by channel, which is the same and takes half as long.
    larger = np.stack([ndimage.zoom(channel, factor, order=1) for channel in np.moveaxis(middle, -1, 0)], axis=-1)
    trim = (larger.shape[0] - height) // 2
    return larger[trim : trim + height, trim : trim + height]


def fog(image: Image, severity: int, draws: Draws) -> Image:
    """Clouds of plasma noise over the picture, which darkens by as much as they add."""
    height, width = image.shape[:2]
    if max(height, width) > FOG_MAP:
        raise SimulationError(
            f"LIBERO-Plus's fog covers pictures of up to {FOG_MAP} pixels, not {width}x{height}; "
            f"use --image-size {FOG_MAP}"
        )
    strength, decay = _FOG[severity - 1]
    original = image / 255.0
    brightest = original.max()
    foggy = original + strength * _plasma(decay, draws)[:height, :width, np.newaxis]
    return _to_bytes(np.clip(foggy * brightest / (brightest + strength), 0, 1) * 255)


def _plasma(decay: float, draws: Draws) -> Float[np.ndarray, "256 256"]:
    """A fractal height map in [0, 1] by the diamond-square algorithm, wrapping around."""
    heights = np.zeros((FOG_MAP, FOG_MAP))
    step, roughness = FOG_MAP, 100.0

    def mean_of_four(total: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
        return total / 4 + roughness * draws.uniform(-roughness, roughness, total.shape)

    while step >= 2:
        half = step // 2
        corners = heights[::step, ::step]
        rows = corners + np.roll(corners, -1, axis=0)
        heights[half::step, half::step] = mean_of_four(rows + np.roll(rows, -1, axis=1))
        centres, corners = heights[half::step, half::step], heights[::step, ::step]
        above = centres + np.roll(centres, 1, axis=0)
        beside = corners + np.roll(corners, -1, axis=1)
        heights[::step, half::step] = mean_of_four(above + beside)
        left = centres + np.roll(centres, 1, axis=1)
        below = corners + np.roll(corners, -1, axis=0)
        heights[half::step, ::step] = mean_of_four(left + below)
        step, roughness = half, roughness / decay
    heights -= heights.min()
    return heights / heights.max()


def glass_blur(image: Image, severity: int, draws: Draws) -> Image:
    """Blurred, each pixel replaced by one nearby, blurred again."""
    sigma, reach, rounds = _GLASS[severity - 1]
    blurred = (_gaussian(image / 255.0, sigma) * 255).astype(np.uint8)
    height, width = blurred.shape[:2]
    rows, columns = np.arange(height - reach, reach, -1), np.arange(width - reach, reach, -1)
    targets = (rows[:, None] * width + columns).ravel()
    source = list(range(height * width))
    for _ in range(rounds):
        dx, dy = draws.randint(-reach, reach, size=(len(targets), 2)).T
        # The benchmark means to swap the two pixels; its swap of two views copies the second onto the first. One after
        # the other: a pixel can take what an earlier one was given.
        for target, other in zip(targets.tolist(), (targets + dy * width + dx).tolist(), strict=True):
            source[target] = source[other]
    shuffled = blurred.reshape(-1, 3)[source].reshape(blurred.shape)
    return _to_bytes(np.clip(_gaussian(shuffled / 255.0, sigma), 0, 1) * 255)


def _gaussian(image: Float[np.ndarray, "h w 3"], sigma: float) -> Float[np.ndarray, "h w 3"]:
    """scikit-image's ``gaussian``: edges repeated, cut off at four standard deviations, channels apart."""
    return ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4.0)


def _to_bytes(image: Float[np.ndarray, "h w 3"]) -> Image:
    """Cut off, not rounded, as the benchmark does."""
    return image.astype(np.uint8)


_KINDS: dict[str, Callable[[Image, int, Draws], Image]] = {
    "motion blur": motion_blur,
    "gaussian blur": gaussian_blur,
    "zoom blur": zoom_blur,
    "fog": fog,
    "glass blur": glass_blur,
}
