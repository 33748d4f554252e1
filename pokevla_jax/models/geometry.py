"""Geometry alignment (training only): vision states, projected, point the way of a geometry teacher's features.

Source: the paper's equation 5 and Spatial Forcing's projector.
"""

import math

import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ConfigError
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import ModelConfig
from pokevla_jax.models import precomputed
from pokevla_jax.models.layers import MLP
from pokevla_jax.models.layers import LayerNorm
from pokevla_jax.typing import Array
from pokevla_jax.typing import Batch
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float


class AlignProjector(nnx.Module):
    """LayerNorm, Linear, GELU, Linear: from vision states to the teacher's feature space."""

    def __init__(self, config: ModelConfig):
        width, dim = config.language.width, config.geometry.feature_dim
        self.norm = LayerNorm(width, eps=1e-5)
        self.mlp = MLP(width, dim, dim, axes=("embed", "mlp", None))

    def __call__(self, vision: Float[Array, "b n d"]) -> Float[Array, "b n f"]:
        return self.mlp(self.norm(vision)).astype(jnp.float32)


def depth_features(points: Float[Array, "... 3"], config: GeometryConfig) -> Float[Array, "... f"]:
    """Fourier features of 3-D points (metres, base frame) around the workspace centre, float32.

    Every feature vector has the same length, so the cosine to it measures distance alone; the slow frequencies keep
    far points apart, the fast ones near points.
    """
    centered = points.astype(jnp.float32) - jnp.array(config.workspace_center, jnp.float32)
    angles = 2 * math.pi * centered[..., None] * jnp.array(config.frequencies, jnp.float32)
    angles = angles.reshape(*points.shape[:-1], -1)
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)


def check_teacher(config: GeometryConfig) -> None:
    """Raises ``ConfigError`` where fields of the teacher contradict each other, or its features and the projector."""
    if config.teacher == "depth":
        size = 6 * len(config.frequencies)
        if config.source == "precomputed":
            raise ConfigError(
                "config.model.geometry.source 'precomputed' needs teacher 'vggt': the depth teacher's features are "
                "computed from the points of the batch"
            )
        if config.feature_dim != size:
            raise ConfigError(
                f"config.model.geometry.feature_dim {config.feature_dim} does not fit the depth teacher: its "
                f"{len(config.frequencies)} frequencies make {size} features"
            )
    elif config.source == "inside":
        vggt = config.vggt
        if config.feature_dim != 2 * vggt.width:
            raise ConfigError(
                f"config.model.geometry.feature_dim {config.feature_dim} does not fit the VGGT teacher: its blocks' "
                f"joined tokens have {2 * vggt.width} features"
            )
        if not -vggt.depth <= config.layer < vggt.depth:
            raise ConfigError(
                f"config.model.geometry.layer {config.layer} does not exist: the VGGT teacher has {vggt.depth} pairs "
                "of blocks"
            )
        if vggt.image_size % vggt.patch_size:
            raise ConfigError(
                f"config.model.geometry.vggt.image_size {vggt.image_size} is not a multiple of its patch_size "
                f"{vggt.patch_size}; nearest: {vggt.grid * vggt.patch_size}"
            )


def computes_teacher(config: GeometryConfig) -> bool:
    """Whether the network holds the VGGT aggregator."""
    return bool(config.weight) and config.teacher == "vggt" and config.source == "inside"


def valid_tokens(config: ModelConfig, batch: Batch) -> Bool[Array, "b n"]:
    """Which vision tokens have a target: those whose point was measured, or all of them."""
    b = batch["images"].shape[0]
    if config.geometry.teacher == "depth":
        return batch["points_valid"].reshape(b, -1)
    return jnp.ones((b, config.num_vision_tokens), bool)


def batch_targets(config: ModelConfig, batch: Batch) -> Float[Array, "b n f"]:
    """The teacher's features of every vision token, where they follow from the batch alone."""
    if config.geometry.teacher == "vggt":
        return precomputed.features(batch, "geometry_targets", config.geometry_targets, "geometry")
    features = depth_features(batch["points"], config.geometry)
    return features.reshape(features.shape[0], -1, features.shape[-1])


def scale_keypoints(points: Float[Array, "... 3"], config: ModelConfig) -> Float[Array, "... 3"]:
    """Positions (metres, base frame) in the units that the keypoint head predicts: centred on the workspace, scaled."""
    return (points - jnp.array(config.geometry.workspace_center, jnp.float32)) / config.keypoint.scale
