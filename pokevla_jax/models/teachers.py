"""The frozen teachers apart from the network: what they tell of images, as a batch brings it precomputed."""

import dataclasses
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ModelConfig
from pokevla_jax.models import geometry
from pokevla_jax.models import segmentation
from pokevla_jax.models import stacking
from pokevla_jax.models import vggt
from pokevla_jax.models.image_encoders import SamEncoder
from pokevla_jax.typing import Array
from pokevla_jax.typing import Float
from pokevla_jax.typing import Params
from pokevla_jax.typing import UInt8

PATHS = {"segmentation": ("segmentation", "image_encoder"), "geometry": ("vggt",)}
"""Where a teacher's parameters stand in the network's tree, by the part that it teaches."""
NAMES = {"segmentation": "SAM's image encoder", "geometry": "VGGT"}


def own(part: str, names: Iterable[str]) -> list[str]:
    """Those ``names`` of the network's parameters that are the teacher's of ``part``."""
    return [name for name in names if name.startswith("/".join(PATHS[part]) + "/")]


def abstract_params(config: ModelConfig, part: str) -> Params:
    """Shapes of the parameters of the teacher of ``part``; raises ``ConfigError`` where its fields contradict."""
    return stacking.shapes(_module(config, part))


def features(
    config: ModelConfig, part: str, params: Params, images: UInt8[Array, "b v h w 3"]
) -> Float[Array, "b ..."]:
    """The batch's entry of the teacher of ``part``, float16.

    VGGT's are unit vectors: only their direction matters, and their length may be one that half precision lacks.
    """
    teacher = stacking.fill(_module(config, part), params)
    with jax.named_scope(part):
        if part == "segmentation":
            maps = teacher(images.reshape(-1, *images.shape[2:]))
            return maps.reshape(*images.shape[:2], *maps.shape[1:]).astype(jnp.float16)
        dtype = jnp.dtype(config.dtype)
        targets = vggt.teacher_features(teacher, images, config.geometry, grid=config.vision.grid, dtype=dtype)
        return (targets / jnp.linalg.norm(targets, axis=-1, keepdims=True)).astype(jnp.float16)


def _module(config: ModelConfig, part: str) -> nnx.Module:
    if part == "segmentation":
        segmentation.check_encoder(config.segmentation)
        return SamEncoder(config)
    # What the network checks of a teacher that it holds.
    geometry.check_teacher(dataclasses.replace(config.geometry, source="inside"))
    return vggt.Aggregator(config.geometry.vggt, layer=config.geometry.layer, implementation=config.attention)
