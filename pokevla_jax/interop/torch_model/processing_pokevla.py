"""Observations to the network's inputs, and its outputs to actions; numpy alone.

Images are resized and cropped to the bit as in training, where OpenCV 5 does it: other versions and libraries round
otherwise, by up to several grey levels, and the network would see other pictures than it was trained on.
"""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

STATISTICS = "dataset_statistics.json"
TOKENIZER = "tokenizer.json"
_WORD = re.compile(r"\w+|[^\w\s]")
_EPSILON = 1e-8
_COEFFICIENT = 2048  # OpenCV's fixed-point one


class PokeVLAProcessor:
    """What stands around the network.

    Args:
        preprocessing: ``config.preprocessing`` of the exported model.
        statistics: the content of ``dataset_statistics.json``.
        tokenizer_file: Qwen2.5's ``tokenizer.json``; None where the vocabulary is part of ``preprocessing``.
    """

    def __init__(self, preprocessing: dict[str, Any], statistics: dict[str, Any], tokenizer_file: str | None = None):
        self._settings = preprocessing
        (columns,) = statistics.values()
        self._state, self._action = Column(columns["proprio"]), Column(columns["action"])
        self.encode = _tokenizer(preprocessing["tokenizer"], tokenizer_file)

    @classmethod
    def from_pretrained(cls, name: str, preprocessing: dict[str, Any], **hub: Any) -> "PokeVLAProcessor":
        """The processor of an exported folder, or of one on the hub."""
        from transformers.utils import cached_file

        statistics = json.loads(Path(str(cached_file(name, STATISTICS, **hub))).read_text())
        needs_file = preprocessing["tokenizer"]["kind"] == "qwen"
        return cls(preprocessing, statistics, cached_file(name, TOKENIZER, **hub) if needs_file else None)

    def __call__(self, images: Sequence[np.ndarray], instruction: str, state: Sequence[float]) -> dict[str, np.ndarray]:
        """The network's inputs for one observation, unbatched: ``images``, ``tokens``, ``proprio``.

        Args:
            images: one uint8 array [h, w, 3] per view, in the order of ``preprocessing["views"]``, of any size.
            instruction: what the robot shall do.
            state: the robot's state as recorded, not normalised.

        Raises:
            ValueError: in one sentence, for an observation of the wrong shape or type.
        """
        settings, views = self._settings, self._settings["views"]
        images = [np.asarray(image) for image in images]
        if len(images) != len(views) or any(x.dtype != np.uint8 or x.ndim != 3 or x.shape[2] != 3 for x in images):
            found = ", ".join(f"{x.dtype}{list(x.shape)}" for x in images)
            raise ValueError(f"images must be uint8 [h, w, 3], one for each of {', '.join(views)}; got {found}")
        proprio = np.asarray(state, np.float32)
        if proprio.shape != self._state.mask.shape or not np.isfinite(proprio).all():
            raise ValueError(f"state must be {len(self._state.mask)} finite numbers; got shape {list(proprio.shape)}")
        tokens = self.encode("" if settings["zero_language"] else instruction)
        if len(tokens) > settings["max_prompt_length"]:
            raise ValueError(
                f"The prompt has {len(tokens)} tokens, the network was trained with up to "
                f"{settings['max_prompt_length']}; shorten the instruction"
            )
        seen = np.stack([prepare_image(x, settings["image_size"], settings["crop_area"]) for x in images])
        return {
            "images": np.zeros_like(seen) if settings["zero_images"] else seen,
            "tokens": np.asarray(tokens, np.int64),
            "proprio": self._state.normalize(proprio),
        }

    def actions(self, normalized: np.ndarray) -> np.ndarray:
        """Un-normalised actions of the network's output."""
        return self._action.unnormalize(normalized)


class Column:
    """Normalisation of one column by its 1st and 99th percentiles; dimensions outside the mask pass through."""

    def __init__(self, values: dict[str, Any]):
        q01, q99 = (np.asarray(values[name], np.float64) for name in ("q01", "q99"))
        self.mask = np.asarray(values.get("mask", [True] * len(q01)), np.bool_)
        # A dimension that hardly moves is divided by the floor; its interval keeps its middle.
        length = np.maximum(q99 - q01, values.get("floor", 0.0))
        constant = self.mask & (q99 - q01 < length)
        self._low = np.where(constant, (q01 + q99 - length) / 2, q01)
        self._length = length + _EPSILON

    def normalize(self, values: np.ndarray) -> np.ndarray:
        """``values`` with [q01, q99] mapped to [-1, 1] and clipped, float32."""
        scaled = np.clip(2 * (values - self._low) / self._length - 1, -1, 1)
        return np.where(self.mask, scaled, values).astype(np.float32)

    def unnormalize(self, values: np.ndarray) -> np.ndarray:
        """The inverse of ``normalize`` within [q01, q99], float32."""
        return np.where(self.mask, (values + 1) / 2 * self._length + self._low, values).astype(np.float32)


def _tokenizer(settings: dict[str, Any], file: str | None) -> Any:
    """A function from an instruction to the ids of the whole prompt."""
    template = settings["prompt_template"]
    if settings["kind"] == "compact":
        ids = {word: index for index, word in enumerate(("<pad>", "<unk>", "<bos>", *settings["words"]))}

        def encode_words(instruction: str) -> list[int]:
            words = _WORD.findall(template.format(instruction=instruction.strip()).lower())
            return [ids["<bos>"], *(ids.get(word, ids["<unk>"]) for word in words)]

        return encode_words
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))

    def encode_qwen(instruction: str) -> list[int]:
        if "<|" in instruction:  # It would be read as a control token and could end the user's turn.
            raise ValueError(f"Instruction {instruction!r} contains '<|', which starts a control token; remove it")
        prompt = template.format(instruction=instruction.strip().lower())
        return tokenizer.encode(settings["chat_template"].format(prompt=prompt), add_special_tokens=False).ids

    return encode_qwen


def prepare_image(image: np.ndarray, size: int, crop_area: float) -> np.ndarray:
    """The middle of the image, of ``crop_area`` of its area, at ``size`` square."""
    if image.shape[:2] != (size, size):
        image = _shrink(image, size) if size <= min(image.shape[:2]) else _enlarge(image, size)
    return _central_crop(image, crop_area) if crop_area < 1 else image


def _shrink(image: np.ndarray, size: int) -> np.ndarray:
    """OpenCV's INTER_AREA: the mean over each output pixel's area."""
    height, width = image.shape[:2]
    if height % size == 0 and width % size == 0:
        rows, columns = height // size, width // size
        total = image.reshape(size, rows, size, columns, 3).sum((1, 3), dtype=np.int64)
        if (rows, columns) == (2, 2):
            return ((total + 2) >> 2).astype(np.uint8)
        return np.rint(total.astype(np.float32) * np.float32(1 / (rows * columns))).astype(np.uint8)
    columns, weights = _area_taps(width, size)
    narrow = np.zeros((height, size, 3), np.float32)
    for column, weight in zip(columns.T, weights.T, strict=True):
        narrow += image[:, column] * weight[:, None]
    rows, weights = _area_taps(height, size)
    out = np.zeros((size, size, 3), np.float32)
    for row, weight in zip(rows.T, weights.T, strict=True):
        out += narrow[row] * weight[:, None, None]
    return _to_bytes(out)


@functools.cache
def _area_taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that each output pixel covers and their parts of it, padded with parts of nothing."""
    scale, taps = length / size, []
    for i in range(size):
        start, end = i * scale, (i + 1) * scale
        cell = min(scale, length - start)
        last = min(int(np.floor(end)), length - 1)
        first = min(int(np.ceil(start)), last)
        tap = [(pixel, 1 / cell) for pixel in range(first, last)]
        if first - start > 1e-3:
            tap.insert(0, (first - 1, (first - start) / cell))
        if end - last > 1e-3:
            tap.append((last, min(min(end - last, 1.0), cell) / cell))
        taps.append(tap)
    most = max(map(len, taps))
    padded = np.array([tap + [(0, 0.0)] * (most - len(tap)) for tap in taps])
    return padded[..., 0].astype(np.int64), padded[..., 1].astype(np.float32)


def _enlarge(image: np.ndarray, size: int) -> np.ndarray:
    """OpenCV's INTER_LINEAR of bytes: fixed-point numbers, cut off at the same places."""
    height, width = image.shape[:2]
    pixels = image.astype(np.int64)
    first, fraction = _linear_taps(width, size)
    # Beyond the border, columns lose their second neighbour, while rows mix the border with itself.
    fraction = np.where((first < 0) | (first >= width - 1), np.float32(0), fraction)
    first = first.clip(0, width - 1)
    (weight, other), second = _fixed_point(fraction), np.minimum(first + 1, width - 1)
    wide = pixels[:, first] * weight[:, None] + pixels[:, second] * other[:, None]
    first, fraction = _linear_taps(height, size)
    weight, other = (w[:, None, None] for w in _fixed_point(fraction))
    upper, lower = (wide[row.clip(0, height - 1)] >> 4 for row in (first, first + 1))
    return (((weight * upper >> 16) + (other * lower >> 16) + 2) >> 2).clip(0, 255).astype(np.uint8)


def _linear_taps(length: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    position = ((np.arange(size) + 0.5) * (length / size) - 0.5).astype(np.float32)
    first = np.floor(position)
    return first.astype(np.int64), position - first


def _fixed_point(fraction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    other = np.rint(fraction * np.float32(_COEFFICIENT)).astype(np.int64)
    return np.rint((np.float32(1) - fraction) * np.float32(_COEFFICIENT)).astype(np.int64), other


def _central_crop(image: np.ndarray, area: float) -> np.ndarray:
    """The middle of a square image at the image's own size: OpenCV 5's warpAffine, bilinear, in float32."""
    size, side = image.shape[0], float(np.sqrt(area))
    # Pixel centres lie at i + 1/2: output i shows source (i + 1/2) * side + offset - 1/2.
    offset = np.float32((1 - side) / 2 * size + (side / 2 - 0.5))
    steps, step = np.arange(size), np.float32(side)
    # OpenCV rounds a row's coordinates twice and a column's once.
    rows = steps.astype(np.float32) * step + offset
    columns = (steps * np.float64(step) + np.float64(offset)).astype(np.float32)
    out = image.astype(np.float32)
    first = np.floor(columns)
    left, right = (out[:, (first.astype(np.int64) + k).clip(0, size - 1)] for k in (0, 1))
    out = left + (columns - first)[:, None] * (right - left)
    first = np.floor(rows)
    upper, lower = (out[(first.astype(np.int64) + k).clip(0, size - 1)] for k in (0, 1))
    return _to_bytes(upper + (rows - first)[:, None, None] * (lower - upper))


def _to_bytes(image: np.ndarray) -> np.ndarray:
    return np.rint(image).clip(0, 255).astype(np.uint8)
