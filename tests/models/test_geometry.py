"""The teachers: what the depth teacher asks can be learned from the image; VGGT is frozen and gives a loss."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import VggtConfig
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.models import geometry
from pokevla_jax.models import stacking
from pokevla_jax.models.pokevla import TRAINING_ONLY
from pokevla_jax.models.pokevla import Outputs
from pokevla_jax.models.pokevla import without_training_parts
from pokevla_jax.training import losses

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


def test_targets_come_per_vision_token_with_their_validity(micro):
    points = np.zeros((2, 2, 3, 3, 3), np.float32)
    valid = np.arange(36).reshape(2, 2, 3, 3) % 2 == 0
    batch = {"images": np.zeros((2, 2, 6, 6, 3)), "points": points, "points_valid": valid}
    config = dataclasses.replace(micro.config, geometry=DEPTH)
    assert geometry.batch_targets(config, batch).shape == (2, 18, 24)
    np.testing.assert_array_equal(geometry.valid_tokens(micro.config, batch)[0], valid[0].reshape(-1))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (dataclasses.replace(DEPTH, feature_dim=2048), "feature_dim 2048 does not fit the depth teacher: its 4 freq"),
        (dataclasses.replace(DEPTH, source="precomputed"), "'precomputed' needs teacher 'vggt'"),
        (GeometryConfig(feature_dim=24), "feature_dim 24 does not fit the VGGT teacher.* have 2048 features"),
        (GeometryConfig(layer=24), "layer 24 does not exist: the VGGT teacher has 24 pairs"),
        (GeometryConfig(vggt=VggtConfig(image_size=500)), "image_size 500 is not a multiple .* 14; nearest: 490"),
    ],
)
def test_a_teacher_that_does_not_fit_says_so(config, message):
    with pytest.raises(ConfigError, match=message):
        geometry.check_teacher(config)


@pytest.fixture(scope="module")
def taught(micro):
    """The micro network with a small VGGT inside, its parameters and a batch."""
    small = VggtConfig(
        image_size=16, patch_size=4, width=8, num_heads=2, mlp_dim=12, num_registers=1, embed_depth=1, depth=2
    )
    teacher = dataclasses.replace(micro.config.geometry, teacher="vggt", vggt=small, feature_dim=16)
    config = dataclasses.replace(
        micro.config,
        geometry=teacher,
        segmentation=dataclasses.replace(micro.config.segmentation, weight=0.0),
        keypoint=dataclasses.replace(micro.config.keypoint, weight=0.0),
    )
    shapes = stacking.abstract_params(config)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda x: rng.normal(0, 0.5, x.shape).astype(np.float32), shapes)
    return config, params, fake_batch(Config(model=config), 2)


def test_the_teacher_is_frozen_and_gives_a_loss(taught):
    config, params, batch = taught
    assert "points" not in batch
    assert not any(jax.tree.leaves(stacking.trainable(config)["vggt"]))
    assert all(jax.tree.leaves(stacking.trainable(config)["align_projector"]))

    def loss(params):
        outputs = stacking.bind(config, params)(batch, train=True)
        total, parts = losses.compute_losses(outputs, batch, config)
        return parts["geometry"], (total, parts, outputs)

    (value, (total, parts, outputs)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
    assert outputs.teacher.shape == outputs.aligned.shape == (2, 8, 16)
    cosine = np.sum(outputs.teacher * outputs.aligned, -1)
    cosine /= np.linalg.norm(outputs.teacher, axis=-1) * np.linalg.norm(outputs.aligned, axis=-1)
    np.testing.assert_allclose(value, 1 - cosine.mean(), rtol=1e-5)
    np.testing.assert_allclose(total, parts["action"] + config.geometry.weight * value, rtol=1e-5)
    assert not any(np.any(x) for x in jax.tree.leaves(grads["vggt"]))
    assert np.any(grads["align_projector"]["mlp"]["fc1"]["kernel"])
    assert np.any(grads["vision"]["projector"]["fc1"]["kernel"])


def test_precomputed_targets_replace_the_teacher(taught):
    config, params, _ = taught
    config = dataclasses.replace(config, geometry=dataclasses.replace(config.geometry, source="precomputed"))
    assert "vggt" not in stacking.abstract_params(config)
    batch = fake_batch(Config(model=config), 2)
    assert batch["geometry_targets"].shape == (2, 8, 16)
    aligned = np.random.default_rng(0).normal(size=(2, 8, 16)).astype(np.float32)
    actions = np.zeros((2, config.action_horizon, config.action_dim), np.float32)
    for targets, expected in ((aligned, 0.0), (-3 * aligned, 2.0)):
        changed = {**batch, "geometry_targets": targets.astype(np.float16)}
        _, parts = losses.compute_losses(Outputs(actions, aligned=aligned), changed, config)
        np.testing.assert_allclose(parts["geometry"], expected, atol=1e-4)
    with pytest.raises(ConfigError, match=r"geometry_targets have shape \(7, 16\) a sample .* needs \(8, 16\)"):
        losses.compute_losses(Outputs(actions, aligned=aligned), {**batch, "geometry_targets": aligned[:, 1:]}, config)


def test_a_network_for_inference_has_no_teacher(taught):
    config, params, batch = taught
    lean = without_training_parts(config)
    assert set(stacking.abstract_params(config)) - set(stacking.abstract_params(lean)) == {"vggt", "align_projector"}
    kept = {part: tree for part, tree in params.items() if part not in TRAINING_ONLY}
    actions = jax.eval_shape(lambda p: stacking.bind(lean, p)(batch, train=False).actions, kept)
    assert actions.shape == (2, 8, 7)
    with pytest.raises(ConfigError, match="does not hold the VGGT teacher"):
        stacking.bind(lean, kept).teach(batch["images"])


def test_keypoints_are_centred_and_scaled(micro):
    points = jnp.array([[0.6, 0.0, 0.1], [0.8, -0.2, 0.1]])
    np.testing.assert_allclose(geometry.scale_keypoints(points, micro.config), [[0, 0, 0], [1, -1, 0]], atol=1e-6)
