"""The depth teacher: what it asks of a student can be learned from the image and only from its own image."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import ConfigError
from pokevla_jax.config import GeometryConfig
from pokevla_jax.models import geometry

DEPTH = GeometryConfig(teacher="depth", feature_dim=24)


def scenes(count=40, grid=6, seed=0):
    """Points (metres, base frame) that a fixed camera sees: a table with boxes of random place and height."""
    rng = np.random.default_rng(seed)
    v, u = np.meshgrid(np.linspace(-1, 1, grid), np.linspace(-1, 1, grid), indexing="ij")
    rays = np.stack([u, v, np.full_like(u, 2.0)], axis=-1)
    depth = np.full((count, grid, grid), 0.5)
    for i in range(count):
        for _ in range(3):
            row, column = rng.integers(0, grid - 1, 2)
            depth[i, row : row + 2, column : column + 2] -= rng.uniform(0.03, 0.2)
    camera_points = rays / 2 * depth[..., None]
    points = np.stack([0.6 + camera_points[..., 0], camera_points[..., 1], 0.6 - camera_points[..., 2]], axis=-1)
    return depth, points, rays


def fitted_cosine(depth, targets, evaluate):
    """Mean cosine, to ``evaluate``, of the best linear map per patch position from what an image shows (its depth)."""
    count = depth.shape[0]
    shown = depth.reshape(count, -1)
    targets, evaluate = (x.reshape(count, shown.shape[1], -1) for x in (targets, evaluate))
    cosines = []
    for patch in range(shown.shape[1]):
        inputs = np.stack([np.ones(count), shown[:, patch], shown[:, patch] ** 2], axis=-1)
        prediction = inputs @ np.linalg.lstsq(inputs, targets[:, patch], rcond=None)[0]
        dot = (prediction * evaluate[:, patch]).sum(-1)
        cosines.append(dot / np.linalg.norm(prediction, axis=-1) / np.linalg.norm(evaluate[:, patch], axis=-1))
    return float(np.mean(cosines))


def test_targets_of_other_images_are_worse_than_the_own_ones():
    depth, points, rays = scenes()
    features = np.asarray(geometry.depth_features(jnp.asarray(points), DEPTH))
    shuffled = np.roll(features, 1, axis=0)
    own, other = fitted_cosine(depth, features, features), fitted_cosine(depth, shuffled, shuffled)
    assert own > 0.99
    assert own - other > 0.02
    # The same measure sees no difference for camera-frame directions, which are constant per patch: they teach nothing.
    directions = np.broadcast_to(rays / np.linalg.norm(rays, axis=-1, keepdims=True), points.shape)
    assert abs(fitted_cosine(depth, directions, directions) - fitted_cosine(depth, directions, directions[::-1])) < 1e-6


def test_features_have_one_length_and_fall_off_with_distance():
    center = np.array(DEPTH.workspace_center)
    offsets = np.array([[0, 0, 0], [0.02, 0, 0], [0.05, 0, 0], [0.1, 0, 0]])
    features = np.asarray(geometry.depth_features(jnp.asarray(center + offsets), DEPTH))
    assert features.shape == (4, 24)
    np.testing.assert_allclose(np.linalg.norm(features, axis=-1), np.sqrt(12), rtol=1e-5)
    cosines = features @ features[0] / 12
    assert np.all(np.diff(cosines) < -0.001)


def test_teacher_features_come_per_vision_token_with_their_validity():
    points = np.zeros((2, 2, 3, 3, 3), np.float32)
    valid = np.arange(36).reshape(2, 2, 3, 3) % 2 == 0
    features, mask = geometry.teacher_features(DEPTH, {"points": points, "points_valid": valid})
    assert features.shape == (2, 18, 24)
    np.testing.assert_array_equal(mask[0], valid[0].reshape(-1))


def test_a_teacher_that_is_not_built_or_does_not_fit_says_so(micro):
    with pytest.raises(ConfigError, match="'vggt' cannot compute features"):
        geometry.teacher_features(GeometryConfig(), {})
    with pytest.raises(ConfigError, match="feature_dim 2048 does not fit the depth teacher: its 4 frequencies make 24"):
        geometry.check_teacher(dataclasses.replace(DEPTH, feature_dim=2048))


def test_keypoints_are_centred_and_scaled(micro):
    points = jnp.array([[0.6, 0.0, 0.1], [0.8, -0.2, 0.1]])
    np.testing.assert_allclose(geometry.scale_keypoints(points, micro.config), [[0, 0, 0], [1, -1, 0]], atol=1e-6)
