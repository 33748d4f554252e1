"""What the fields of a configuration may be, alone and beside each other."""

import dataclasses
import math
import operator
from typing import TYPE_CHECKING

from pokevla_jax.fields import ConfigError

if TYPE_CHECKING:
    from pokevla_jax.config import Config

# Keys by the least value that they may have: what counts something that must exist, or divides; what may be none.
_LEAST = {
    1: (
        *("batch_size", "num_steps", "log_every", "eval_every", "checkpoint.every_steps", "checkpoint.keep_last"),
        *("optimizer.accumulation_steps", "optimizer.spike_window", "data.prefetch", "data.pack_length"),
        *("data.pack_images", "model.action_dim", "model.action_horizon", "model.proprio_dim"),
        *("model.max_prompt_length", "model.logits_chunk", "model.vision.image_size", "model.vision.patch_size"),
    ),
    0: (
        *("seed", "eval_batches", "checkpoint.keep_every", "data.num_workers", "optimizer.learning_rate"),
        *("optimizer.warmup_steps", "optimizer.weight_decay", "optimizer.clip_norm", "optimizer.lora_rank"),
        *("model.segmentation.weight", "model.geometry.weight", "model.keypoint.weight"),
    ),
}
_SHARES = ("data.holdout_fraction", "data.augment.crop_area", "optimizer.b1", "optimizer.b2", "optimizer.ema_decay")


def validate(config: "Config") -> None:
    """Raises ``ConfigError`` where fields contradict each other, saying what to change."""
    bounds = {key: (least, math.inf) for least, keys in _LEAST.items() for key in keys} | dict.fromkeys(_SHARES, (0, 1))
    for key, (low, high) in bounds.items():
        if not low <= (value := operator.attrgetter(key)(config)) <= high:  # nor is it a NaN
            allowed = f"{low} to {high}" if high < math.inf else f"{low} or more"
            raise ConfigError(f"config.{key} is {value}; give a number of {allowed}")
    model = config.model
    if model.vision.image_size % model.vision.patch_size:
        raise ConfigError(
            f"config.model.vision.image_size {model.vision.image_size} is not a multiple of patch_size "
            f"{model.vision.patch_size}; nearest: {model.vision.grid * model.vision.patch_size}"
        )
    if model.action_head.context == "layerwise" and model.action_head.num_layers != model.language.num_layers:
        raise ConfigError(
            "config.model.action_head.context 'layerwise' needs as many head blocks as language layers: "
            f"{model.action_head.num_layers} and {model.language.num_layers}"
        )
    if model.action_head.shifted_context and model.vision_position == "first":
        raise ConfigError(
            "config.model.action_head.shifted_context reads the position before the first patch, and there is none; "
            "set config.model.vision_position to 'after_first_token'"
        )
    readers = {
        "action_head.inject_seg": model.action_head.inject_seg,
        "segmentation.weight": model.segmentation.weight,
        "keypoint.weight": model.keypoint.weight,
    }
    for name, value in readers.items():
        if value and not model.seg_token:
            raise ConfigError(
                f"config.model.{name} {value} reads the state of <SEG>, which config.model.seg_token False leaves out; "
                f"switch {name} off, or the token on"
            )
    for group in ("source_weights", "pillar_weights"):
        for name, weight in getattr(config.data, group).items():
            if not 0 <= weight < math.inf:
                raise ConfigError(f"config.data.{group}.{name} is {weight}; give a number of 0 or more")
    if config.batch_size % config.optimizer.accumulation_steps:
        raise ConfigError(
            f"config.batch_size {config.batch_size} is not divisible by optimizer.accumulation_steps "
            f"{config.optimizer.accumulation_steps}"
        )
    if model.attention == "cudnn" and model.dtype != "bfloat16":
        raise ConfigError(f"config.model.attention 'cudnn' computes in bfloat16; config.model.dtype is {model.dtype!r}")
    if config.stage == "vlm":
        slots = config.data.pack_images * model.vision.num_patches
        if slots >= config.data.pack_length:
            raise ConfigError(
                f"config.data.pack_length {config.data.pack_length} leaves no room for text beside pack_images "
                f"{config.data.pack_images} x {model.vision.num_patches} patches = {slots} tokens"
            )
    if list(dataclasses.astuple(config.mesh)).count(-1) > 1:
        raise ConfigError("config.mesh may leave only one axis to fill (-1)")
