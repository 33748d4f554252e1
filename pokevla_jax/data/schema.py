"""The single specification of a batch, of an observation and of a stored frame.

The loader, model initialisation, the memory plan, the server's warm-up and the tests' fakes all read it. It imports no
JAX: loader worker processes use it too.
"""

from typing import NamedTuple

import numpy as np

from pokevla_jax.config import Config
from pokevla_jax.config import ModelConfig


class ArraySpec(NamedTuple):
    """Shape and dtype of one array of a batch."""

    shape: tuple[int, ...]
    dtype: np.dtype


def batch_spec(config: Config, batch_size: int, *, train: bool = True) -> dict[str, ArraySpec]:
    """Shapes and dtypes of one batch of ``config.stage``; what follows is stage 2's, for stage 1's see below.

    Inference (``train=False``) needs the first four entries alone. Training adds the action chunk and, only where
    their loss has weight, the labels of segmentation, geometry and keypoints.
    """
    if config.stage == "vlm":
        return stage1_batch_spec(config, batch_size)
    model = config.model
    b, v = batch_size, len(model.views)
    size, grid, mask = model.vision.image_size, model.vision.grid, model.segmentation.mask_size
    spec = {
        # RGB, already cropped and resized to the model's size; normalised per tower on the device.
        "images": ((b, v, size, size, 3), np.uint8),
        # The prompt, right padded, and which of its positions are real.
        "tokens": ((b, model.max_prompt_length), np.int32),
        "token_mask": ((b, model.max_prompt_length), np.bool_),
        # Robot state, normalised by q01/q99 to [-1, 1].
        "proprio": ((b, model.proprio_dim), np.float32),
    }
    if train:
        spec["actions"] = ((b, model.action_horizon, model.action_dim), np.float32)
        spec["action_mask"] = ((b, model.action_horizon), np.bool_)
        if model.segmentation.weight:
            # Union of the visible pixels of the instruction's objects of interest, under the same crop as the image.
            spec["masks"] = ((b, v, mask, mask), np.uint8)
            spec["mask_valid"] = ((b, v), np.bool_)
        if model.geometry.weight and model.geometry.teacher == "depth":
            # The 3-D point seen at the centre of each patch, metres, robot base frame.
            spec["points"] = ((b, v, grid, grid, 3), np.float32)
            spec["points_valid"] = ((b, v, grid, grid), np.bool_)
        for name, (_, shape) in precomputed_features(model).items():
            spec[name] = ((b, *shape), np.float16)
        if model.keypoint.weight:
            # Positions of target and goal object, metres, robot base frame.
            spec["keypoints"] = ((b, model.keypoint.num_keypoints, 3), np.float32)
            spec["keypoints_valid"] = ((b, model.keypoint.num_keypoints), np.bool_)
    return {name: ArraySpec(shape, np.dtype(dtype)) for name, (shape, dtype) in spec.items()}


def teacher_features(model: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """What the frozen teachers tell of one sample: part of the network and shape, by the batch's name for it.

    Computed in the step or precomputed, then as float16: SAM norms its channels, and of VGGT's features only the
    direction matters, so store unit vectors.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    if model.segmentation.weight and model.segmentation.image_encoder == "sam":
        found["segmentation_features"] = "segmentation", model.segmentation_features
    if model.geometry.weight and model.geometry.teacher == "vggt":
        found["geometry_targets"] = "geometry", model.geometry_targets
    return found


def precomputed_features(model: ModelConfig) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Those of ``teacher_features`` that the batch brings."""
    features = teacher_features(model).items()
    return {name: of for name, of in features if getattr(model, of[0]).source == "precomputed"}


def stage1_batch_spec(config: Config, batch_size: int) -> dict[str, ArraySpec]:
    """Shapes and dtypes of one packed stage-1 batch: several conversations, with their images, in every row."""
    model, data = config.model, config.data
    b, m, length, size = batch_size, data.pack_images, data.pack_length, model.vision.image_size
    spec = {
        # RGB at the model's size; rows with fewer images end with black ones.
        "images": ((b, m, size, size, 3), np.uint8),
        "tokens": ((b, length), np.int32),
        # -1 for text, otherwise j * num_patches + p: the position shows patch p of image j of its row.
        "image_slots": ((b, length), np.int32),
        # 0 for padding, 1, 2, ... for the conversations of the row; attention stays within one.
        "segment_ids": ((b, length), np.int32),
        # Counted anew in every conversation.
        "positions": ((b, length), np.int32),
        # The next token of the same conversation, and whether it belongs to an answer.
        "targets": ((b, length), np.int32),
        "loss_mask": ((b, length), np.bool_),
    }
    return {name: ArraySpec(shape, np.dtype(dtype)) for name, (shape, dtype) in spec.items()}


def fake_batch(config: Config, batch_size: int, *, seed: int = 0, train: bool = True) -> dict[str, np.ndarray]:
    """A random batch of the right shapes, for tests and warm-up."""
    rng = np.random.default_rng(seed)
    if config.stage == "vlm":
        return _fake_packs(config, batch_size, rng)
    batch: dict[str, np.ndarray] = {}
    for name, spec in batch_spec(config, batch_size, train=train).items():
        if spec.dtype == np.bool_:
            batch[name] = np.ones(spec.shape, np.bool_)
        elif name == "masks":
            batch[name] = (rng.random(spec.shape) < 0.2).astype(np.uint8)
        elif spec.dtype == np.uint8:
            batch[name] = rng.integers(0, 256, spec.shape, dtype=np.uint8)
        elif spec.dtype == np.int32:
            batch[name] = rng.integers(0, config.model.language.vocab_size, spec.shape, dtype=np.int32)
        else:
            batch[name] = rng.uniform(-1, 1, spec.shape).astype(spec.dtype)
    return batch


def _fake_packs(config: Config, batch_size: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Rows of one conversation per image, each with its patches first; the texts and the padding differ in length."""
    spec = stage1_batch_spec(config, batch_size)
    batch = {name: np.zeros(x.shape, x.dtype) for name, x in spec.items()}
    batch["images"] = rng.integers(0, 256, spec["images"].shape, dtype=np.uint8)
    batch["image_slots"][:] = -1
    patches, vocabulary = config.model.vision.num_patches, config.model.language.vocab_size
    num_images, length = config.data.pack_images, config.data.pack_length
    longest = length // num_images - patches
    for row in range(batch_size):
        start = 0
        for image in range(num_images):
            text = int(rng.integers(max(longest // 2, 1), longest + 1))
            own, words = slice(start, start + patches + text), slice(start + patches, start + patches + text)
            batch["image_slots"][row, start : start + patches] = image * patches + np.arange(patches)
            batch["segment_ids"][row, own] = image + 1
            batch["positions"][row, own] = np.arange(patches + text)
            batch["tokens"][row, words] = rng.integers(0, vocabulary, text)
            batch["targets"][row, words] = rng.integers(0, vocabulary, text)
            batch["loss_mask"][row, words] = np.arange(text) >= text // 2
            start += patches + text
    return batch
