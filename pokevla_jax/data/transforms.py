"""From a stored frame or a live observation to the arrays of ``schema.batch_spec``: numpy and OpenCV only, no JAX.

Training and inference share ``_inputs``; the only difference is which crop is cut and whether colours are jittered, so
that a policy sees exactly what the network was trained on. Randomness comes from the generator that is passed in, never
from a global one. Augmentation follows VLA-Adapter / OpenVLA-OFT: resize to the model's size, crop 90 % of the area at
random and enlarge it again, then brightness, contrast, saturation and hue; at inference the central crop of that area.
"""

from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from pokevla_jax.config import AugmentConfig
from pokevla_jax.config import Config
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import Frame
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.normalize import normalize
from pokevla_jax.data.records import EpisodeDataset
from pokevla_jax.data.tokenize import Tokenizer
from pokevla_jax.data.tokenize import pad_prompt
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import UInt8

Sample = dict[str, np.ndarray]
"""One row of a batch."""


@dataclass(frozen=True)
class Window:
    """The part of an image that is shown: a square of ``side`` at (``x``, ``y``), as fractions of the image's side.

    The same window cuts the image, the mask and the points, each at its own resolution.
    """

    x: float = 0.0
    y: float = 0.0
    side: float = 1.0

    @property
    def is_whole(self) -> bool:
        return (self.x, self.y, self.side) == (0, 0, 1)


def central_window(augment: AugmentConfig) -> Window:
    """The middle of the image, of the area that training crops."""
    side = float(np.sqrt(augment.crop_area))
    return Window((1 - side) / 2, (1 - side) / 2, side)


def random_window(augment: AugmentConfig, source_size: tuple[int, int], rng: np.random.Generator) -> Window:
    """A crop of ``crop_area`` placed uniformly, moved by up to ``shift`` whole source pixels on each axis."""
    side = float(np.sqrt(augment.crop_area))
    x, y = (1 - side) * rng.random(2)
    if augment.shift:
        shift_x, shift_y = rng.integers(-augment.shift, augment.shift + 1, 2)
        x, y = x + shift_x / source_size[1], y + shift_y / source_size[0]
    return Window(float(x), float(y), side)


def crop_image(image: UInt8[np.ndarray, "h w 3"], window: Window, size: int) -> UInt8[np.ndarray, "s s 3"]:
    """The window of the image at ``size``; what lies beyond the border repeats it. Untouched where nothing changes."""
    return _warp(_resize(image, size), window, cv2.BORDER_REPLICATE)


def crop_mask(mask: UInt8[np.ndarray, "h w"], window: Window, size: int) -> UInt8[np.ndarray, "m m"]:
    """1 where more than half of a cell of the window is covered by the mask; nothing lies beyond the border."""
    # An even maximum, so that exactly half is a whole number and stays unset.
    cover = _resize((mask > 0).astype(np.uint8) * 254, size)
    return (_warp(cover, window, cv2.BORDER_CONSTANT) > 127).astype(np.uint8)


def patch_points(
    depth: Float[np.ndarray, "h w"],
    intrinsics: Float[np.ndarray, "3 3"],
    base_from_camera: Float[np.ndarray, "4 4"],
    window: Window,
    grid: int,
) -> tuple[Float[np.ndarray, "g g 3"], Bool[np.ndarray, "g g"]]:
    """The surface points (metres, base frame) seen at the centres of the patches, and which of them exist.

    Each is taken through the centre of the source pixel below a patch's centre, so that it lies on the surface that the
    depth was measured on.
    """
    height, width = depth.shape
    centres = (np.arange(grid) + 0.5) / grid * window.side
    columns = np.floor((window.x + centres) * width).astype(np.int64)
    rows = np.floor((window.y + centres) * height).astype(np.int64)
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))[None, :]
    z = depth[np.clip(rows, 0, height - 1)[:, None], np.clip(columns, 0, width - 1)[None, :]].astype(np.float64)
    pixels = np.stack([*np.meshgrid(columns + 0.5, rows + 0.5), np.ones((grid, grid))], axis=-1)
    camera = pixels @ np.linalg.inv(intrinsics.astype(np.float64)).T * z[..., None]
    points = camera @ base_from_camera[:3, :3].astype(np.float64).T + base_from_camera[:3, 3]
    valid = inside & (z > 0)
    return np.where(valid[..., None], points, 0).astype(np.float32), valid


def jitter_colors(
    image: UInt8[np.ndarray, "h w 3"], augment: AugmentConfig, rng: np.random.Generator
) -> UInt8[np.ndarray, "h w 3"]:
    """The image with brightness, contrast, saturation and hue changed at random, in this order (VLA-Adapter's).

    Each draws even where it is off, so that switching one off leaves the others as they were.
    """
    brightness, contrast, saturation, hue = rng.uniform(-1, 1, 4)
    if not (augment.brightness or augment.contrast or augment.saturation or augment.hue):
        return image
    # Brightness and contrast are one straight line per channel. Contrast is about the mean of each channel, before
    # anything is clipped, as in tf.image.
    factor, shift = 1 + contrast * augment.contrast, brightness * augment.brightness
    offset = shift + (1 - factor) * np.array(cv2.mean(image)[:3]) / 255
    pixels = cv2.transform(image.astype(np.float32), np.column_stack([np.eye(3) * factor / 255, offset]))
    cv2.threshold(pixels, 1, 0, cv2.THRESH_TRUNC, dst=pixels)
    cv2.threshold(pixels, 0, 0, cv2.THRESH_TOZERO, dst=pixels)
    if augment.saturation or augment.hue:
        hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
        # A whole turn more: OpenCV wraps hues above 360 degrees, but not those below 0.
        turn, gain = 360 * (1 + hue * augment.hue), 1 + saturation * augment.saturation
        hsv = cv2.transform(hsv, np.array([[1, 0, 0, turn], [0, gain, 0, 0], [0, 0, 1, 0]], np.float32))
        if gain > 1:
            # A channel of its own: numpy takes longer to bound every third number.
            bounded = cv2.threshold(cv2.extractChannel(hsv, 1), 1, 0, cv2.THRESH_TRUNC)[1]
            cv2.insertChannel(bounded, hsv, 1)
        pixels = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
    return cv2.convertScaleAbs(pixels, alpha=255)


def action_chunk(
    dataset: EpisodeDataset, row: int, horizon: int
) -> tuple[Float[np.ndarray, "t a"], Bool[np.ndarray, " t"]]:
    """The labels of the ``horizon`` steps from ``row`` on, and which of them belong to this chunk.

    What lies beyond the episode's or the chunk's end repeats the last label and is masked.
    """
    first = dataset.starts[dataset.episode[row]]
    end = first + dataset.chunk_end[row]
    steps = row + np.arange(horizon)
    return dataset.action[np.minimum(steps, max(end - 1, row))], steps < end


def training_sample(
    config: Config,
    dataset: EpisodeDataset,
    row: int,
    statistics: Statistics,
    tokenizer: Tokenizer,
    rng: np.random.Generator | None,
) -> Sample:
    """One row of a training batch from one rendered row of the dataset's table.

    ``rng`` draws the augmentation; without it the inputs are what the policy would see (held-out data).
    """
    model, augment = config.model, config.data.augment
    info = dataset.episodes[dataset.episode[row]]
    needs_masks = model.segmentation.weight > 0
    needs_points = model.geometry.weight > 0 and model.geometry.teacher == "depth"
    frame = dataset.frame_at(row, masks=needs_masks, depth=needs_points)
    windows = [
        central_window(augment) if rng is None else random_window(augment, frame.images[view].shape[:2], rng)
        for view in model.views
    ]
    images = [frame.images[view] for view in model.views]
    sample = _inputs(config, images, windows, dataset.state[row], info.instruction, statistics, tokenizer, rng)
    actions, sample["action_mask"] = action_chunk(dataset, row, model.action_horizon)
    sample["actions"] = normalize(actions, statistics.action)
    if needs_masks:
        sample |= _masks(frame, model.views, windows, model.segmentation.mask_size)
    if needs_points:
        sample |= _points(config, dataset, row, frame, windows)
    if model.keypoint.weight:
        count = model.keypoint.num_keypoints
        if dataset.keypoints.shape[1] < count:
            raise DataError(
                f"config.model.keypoint.num_keypoints is {count}, the dataset stores "
                f"{dataset.keypoints.shape[1]}; lower it"
            )
        sample["keypoints"] = dataset.keypoints[row, :count]
        sample["keypoints_valid"] = np.ones(count, np.bool_)
    return sample


def inference_transform(
    config: Config, statistics: Statistics, tokenizer: Tokenizer
) -> Callable[[Mapping[str, Any]], Sample]:
    """A function from an observation to the unbatched arrays of ``batch_spec(train=False)``.

    The observation holds ``images`` (uint8 [v, h, w, 3], in the order of ``config.model.views``), ``state`` (float [r])
    and ``prompt`` (the instruction). Its result for a stored frame equals ``training_sample`` without augmentation.
    """
    model = config.model
    windows = [central_window(config.data.augment)] * len(model.views)

    def transform(observation: Mapping[str, Any]) -> Sample:
        missing = [key for key in ("images", "state", "prompt") if key not in observation]
        if missing:
            raise DataError(f"The observation lacks {missing[0]!r}; it needs images, state and prompt")
        images, state = np.asarray(observation["images"]), np.asarray(observation["state"], np.float32)
        if images.dtype != np.uint8 or images.ndim != 4 or (images.shape[0], images.shape[3]) != (len(model.views), 3):
            raise DataError(
                f"Observation images are {images.dtype}{images.shape}; give uint8 [v, h, w, 3] of "
                f"{', '.join(model.views)}"
            )
        if state.shape != (model.proprio_dim,) or not np.isfinite(state).all():
            raise DataError(f"Observation state has shape {state.shape}; give {model.proprio_dim} finite numbers")
        return _inputs(config, images, windows, state, str(observation["prompt"]), statistics, tokenizer, None)

    return transform


def plain_images(config: Config, dataset: EpisodeDataset, row: int) -> UInt8[np.ndarray, "v s s 3"]:
    """The images of a rendered row as the network sees them where nothing is augmented."""
    frame = dataset.frame_at(row, masks=False, depth=False)
    window = central_window(config.data.augment)
    return _seen(config, [frame.images[view] for view in config.model.views], [window] * len(config.model.views), None)


def _seen(
    config: Config,
    images: Sequence[np.ndarray] | np.ndarray,
    windows: Sequence[Window],
    rng: np.random.Generator | None,
) -> UInt8[np.ndarray, "v s s 3"]:
    size = config.model.vision.image_size
    views = [crop_image(image, window, size) for image, window in zip(images, windows, strict=True)]
    if rng is not None:
        views = [jitter_colors(view, config.data.augment, rng) for view in views]
    stacked = np.stack(views)
    return np.zeros_like(stacked) if config.data.zero_images else stacked


def _inputs(
    config: Config,
    images: Sequence[np.ndarray] | np.ndarray,
    windows: Sequence[Window],
    state: np.ndarray,
    instruction: str,
    statistics: Statistics,
    tokenizer: Tokenizer,
    rng: np.random.Generator | None,
) -> Sample:
    """What the network sees, for training and inference alike."""
    data, model = config.data, config.model
    seen = _seen(config, images, windows, rng)
    proprio = normalize(state, statistics.state)
    if rng is not None:
        noise = data.proprio_noise * rng.standard_normal(proprio.shape)
        # Inference never leaves [-1, 1], so neither does training.
        proprio = np.clip(proprio + noise, -1, 1).astype(np.float32)
    # The controls change what is seen or read and nothing else: same shapes, same labels, same network.
    ids = tokenizer.encode("" if data.zero_language else instruction)
    tokens, token_mask = pad_prompt(ids, model.max_prompt_length, tokenizer.pad_id)
    return {
        "images": seen,
        "tokens": tokens,
        "token_mask": token_mask,
        "proprio": proprio,
    }


def _masks(frame: Frame, views: Sequence[str], windows: Sequence[Window], size: int) -> Sample:
    """Mask labels per view; a frame that was stored without masks gives invalid ones."""
    masks = np.zeros((len(views), size, size), np.uint8)
    valid = np.zeros(len(views), np.bool_)
    for index, (view, window) in enumerate(zip(views, windows, strict=True)):
        if frame.masks is not None and view in frame.masks:
            masks[index] = crop_mask(frame.masks[view], window, size)
            valid[index] = True
    return {"masks": masks, "mask_valid": valid}


def _points(config: Config, dataset: EpisodeDataset, row: int, frame: Frame, windows: Sequence[Window]) -> Sample:
    """Surface points per patch and view; a frame that was stored without depth gives invalid ones."""
    views, grid = config.model.views, config.model.vision.grid
    info = dataset.episodes[dataset.episode[row]]
    points = np.zeros((len(views), grid, grid, 3), np.float32)
    valid = np.zeros((len(views), grid, grid), np.bool_)
    for index, (view, window) in enumerate(zip(views, windows, strict=True)):
        if frame.depth is not None and view in frame.depth:
            camera = info.views.index(view)
            points[index], valid[index] = patch_points(
                frame.depth[view], info.intrinsics[camera], dataset.base_from_camera[row, camera], window, grid
            )
    return {"points": points, "points_valid": valid}


def _resize(image: np.ndarray, size: int) -> np.ndarray:
    """The image at ``size`` square: averaged when it shrinks, bilinear when it grows, itself when it fits."""
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    shrinks = size <= min(height, width)
    return cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _warp(image: np.ndarray, window: Window, border: int) -> np.ndarray:
    """The window of a square image, enlarged to the image's own size."""
    if window.is_whole:
        return image
    size = image.shape[0]
    # Pixel centres lie at i + 1/2: output i shows source (i + 1/2) * side + offset - 1/2.
    centre = window.side / 2 - 0.5
    matrix = np.array([[window.side, 0, window.x * size + centre], [0, window.side, window.y * size + centre]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    if image.ndim == 2:
        return cv2.warpAffine(image, matrix, (size, size), flags=flags, borderMode=border)
    # OpenCV warps four channels, to the same numbers, in half the time of three.
    four = cv2.warpAffine(cv2.cvtColor(image, cv2.COLOR_RGB2RGBA), matrix, (size, size), flags=flags, borderMode=border)
    return cv2.cvtColor(four, cv2.COLOR_RGBA2RGB)
