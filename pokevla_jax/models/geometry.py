"""Geometry alignment (training only): vision states, projected, point the way of a geometry teacher's features.

Source: the paper's equation 5 and Spatial Forcing's projector.
"""

import math

import jax.numpy as jnp
from flax import nnx

from pokevla_jax.config import ConfigError
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import ModelConfig
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
    """Raises ``ConfigError`` if the projector's output cannot match the depth teacher's features."""
    size = 6 * len(config.frequencies)
    if config.teacher == "depth" and config.feature_dim != size:
        raise ConfigError(
            f"config.model.geometry.feature_dim {config.feature_dim} does not fit the depth teacher: its "
            f"{len(config.frequencies)} frequencies make {size} features"
        )


def teacher_features(config: GeometryConfig, batch: Batch) -> tuple[Float[Array, "b n f"], Bool[Array, "b n"]]:
    """The teacher's features of every vision token, and which of them are valid.

    Raises:
        ConfigError: for the VGGT teacher, whose features this version cannot compute.
    """
    if config.teacher == "vggt":
        raise ConfigError(
            "config.model.geometry.teacher 'vggt' cannot compute features: the VGGT aggregator is not built; use "
            "teacher 'depth', or weight 0"
        )
    points = batch["points"]
    b = points.shape[0]
    features = depth_features(points, config)
    return features.reshape(b, -1, features.shape[-1]), batch["points_valid"].reshape(b, -1)


def scale_keypoints(points: Float[Array, "... 3"], config: ModelConfig) -> Float[Array, "... 3"]:
    """Positions (metres, base frame) in the units that the keypoint head predicts: centred on the workspace, scaled."""
    return (points - jnp.array(config.geometry.workspace_center, jnp.float32)) / config.keypoint.scale
