"""Each loss term against an independent numpy computation, its masks, and its independence of how a batch is cut."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import Config
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.models import presets
from pokevla_jax.models.geometry import depth_features
from pokevla_jax.models.pokevla import Outputs
from pokevla_jax.training import losses

ROWS = 8
MODEL = presets.tiny()
TERMS = {"action", "focal", "kld", "geometry", "keypoint"}
compute = jax.jit(losses.compute_losses, static_argnums=2)


@pytest.fixture(scope="module")
def batch():
    """A batch whose rows have unequal numbers of valid entries, with one empty and one unlabelled mask."""
    config = Config(model=MODEL)
    batch = fake_batch(config, ROWS, seed=1)
    rng = np.random.default_rng(2)
    batch["action_mask"] = np.arange(MODEL.action_horizon) < rng.integers(1, MODEL.action_horizon + 1, (ROWS, 1))
    batch["points_valid"] = rng.random(batch["points_valid"].shape) < 0.6
    batch["keypoints_valid"] = rng.random(batch["keypoints_valid"].shape) < 0.7
    batch["masks"][0, 1] = 0
    batch["mask_valid"][3, 0] = False
    assert batch_spec(config, ROWS).keys() == batch.keys()
    return batch


@pytest.fixture(scope="module")
def outputs(batch):
    rng = np.random.default_rng(3)
    n, f = MODEL.num_vision_tokens, MODEL.geometry.feature_dim
    normal = lambda *shape: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return Outputs(
        actions=normal(*batch["actions"].shape),
        coarse_logits=3 * normal(*batch["masks"].shape),
        mask_logits=3 * normal(*batch["masks"].shape),
        aligned=normal(ROWS, n, f),
        keypoints=normal(*batch["keypoints"].shape),
    )


def numpy_parts(outputs, batch) -> dict[str, float]:
    """The definitions, written out with loops in float64."""
    p = 1 / (1 + np.exp(-np.asarray(outputs.mask_logits, np.float64)))
    focal, kld = [], []
    for row, view in np.argwhere(batch["mask_valid"]):
        q, y = p[row, view], batch["masks"][row, view]
        pt, alpha = np.where(y, q, 1 - q), np.where(y, 0.25, 0.75)
        focal.append(np.mean(-alpha * (1 - pt) ** 2 * np.log(pt)))
        if y.any():
            target, predicted = y / y.sum(), q / q.sum()
            kld.append(np.sum(target * np.log(np.where(y, target, 1) / predicted)))
    features = np.asarray(depth_features(batch["points"], MODEL.geometry), np.float64).reshape(ROWS, -1, 24)
    aligned = np.asarray(outputs.aligned, np.float64)
    cosine = np.sum(features * aligned, -1) / np.linalg.norm(features, axis=-1) / np.linalg.norm(aligned, axis=-1)
    center = np.asarray(MODEL.geometry.workspace_center)
    keypoints = (batch["keypoints"] - center) / MODEL.keypoint.scale
    return {
        "action": np.abs(outputs.actions - batch["actions"])[batch["action_mask"]].mean(),
        "focal": np.mean(focal),
        "kld": np.mean(kld),
        "geometry": (1 - cosine)[batch["points_valid"].reshape(ROWS, -1)].mean(),
        "keypoint": np.abs(outputs.keypoints - keypoints)[batch["keypoints_valid"]].mean(),
    }


def test_every_term_equals_its_definition_and_the_total_its_weights(outputs, batch):
    total, parts = compute(outputs, batch, MODEL)
    expected = numpy_parts(outputs, batch)
    assert parts.keys() == expected.keys() == TERMS
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=2e-5, err_msg=name)
    e = expected
    weighted = e["action"] + 0.2 * (e["focal"] + e["kld"]) + 0.4 * e["geometry"] + 0.3 * e["keypoint"]
    np.testing.assert_allclose(total, weighted, rtol=2e-5)


def test_gradients_of_what_is_masked_are_zero_and_of_what_is_empty_finite(outputs, batch):
    batch = {**batch, "masks": batch["masks"] * 0, "points": batch["points"] * 0}
    outputs = dataclasses.replace(outputs, aligned=outputs.aligned * 0)
    grads = jax.jit(jax.grad(lambda o: losses.compute_losses(o, batch, MODEL)[0]))(outputs)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert not np.any(np.asarray(grads.actions)[~batch["action_mask"]])
    assert np.all(np.asarray(grads.actions)[batch["action_mask"]])
    assert not np.any(grads.mask_logits[3, 0])
    assert np.any(grads.mask_logits[3, 1])  # empty but labelled: the focal loss still teaches "nothing here"


def test_a_batch_in_four_parts_sums_to_the_whole(outputs, batch):
    counts = losses.count_valid(batch, MODEL)
    total, parts = compute(outputs, batch, MODEL)
    summed = jax.tree.map(jnp.zeros_like, (total, parts))
    for start in range(0, ROWS, 2):
        micro = jax.tree.map(lambda x: x[start : start + 2], (outputs, batch))  # noqa: B023
        summed = jax.tree.map(jnp.add, summed, compute(*micro, MODEL, counts))
    for whole, cut in zip(jax.tree.leaves((total, parts)), jax.tree.leaves(summed), strict=True):
        np.testing.assert_allclose(whole, cut, rtol=1e-5)


def test_weights_of_zero_switch_terms_off_and_coarse_supervision_on(outputs, batch):
    zero = {
        name: dataclasses.replace(getattr(MODEL, name), weight=0.0) for name in ("segmentation", "geometry", "keypoint")
    }
    actions = {name: batch[name] for name in ("actions", "action_mask")}
    _, parts = compute(Outputs(outputs.actions), actions, dataclasses.replace(MODEL, **zero))
    assert parts.keys() == {"action"}
    segmentation = dataclasses.replace(MODEL.segmentation, coarse_weight=0.5)
    total, parts = compute(outputs, batch, dataclasses.replace(MODEL, segmentation=segmentation))
    extra = 0.2 * 0.5 * (parts["coarse_focal"] + parts["coarse_kld"])
    np.testing.assert_allclose(total - extra, compute(outputs, batch, MODEL)[0], rtol=1e-5)


def test_an_output_that_was_not_computed_is_named(outputs, batch):
    with pytest.raises(ValueError, match=r"no mask_logits.*train=True"):
        losses.compute_losses(Outputs(outputs.actions), batch, MODEL)
