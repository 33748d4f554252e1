"""Coarse-to-fine decoding from the <SEG> state."""

import dataclasses

import jax
import numpy as np
import pytest

from pokevla_jax.config import Config
from pokevla_jax.config import ConfigError
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.models import image_encoders
from pokevla_jax.models import stacking
from pokevla_jax.models.segmentation import Segmentation


@pytest.fixture(scope="module")
def decode(micro):
    module = Segmentation(micro.config)

    def forward(params, images, seg):
        filled = stacking.fill(module, params)
        return filled(filled.encode(images), seg)

    run = jax.jit(forward)
    seg = jax.random.normal(jax.random.key(3), (3, 32))
    return run, micro.params["segmentation"], micro.batch["images"], seg


def test_masks_follow_the_image_of_their_view_and_the_seg_state_of_their_sample(decode):
    run, params, images, seg = decode
    coarse, fine = run(params, images, seg)
    changed = images.copy()
    changed[:, 1] = 255 - changed[:, 1]
    for before, after in zip((coarse, fine), run(params, changed, seg), strict=True):
        np.testing.assert_allclose(after[:, 0], before[:, 0], atol=1e-5)
        assert np.abs(after[:, 1] - before[:, 1]).max() > 1e-4
    for before, after in zip((coarse, fine), run(params, images, seg.at[0].add(1.0)), strict=True):
        np.testing.assert_allclose(after[1:], before[1:], atol=1e-5)
        assert np.abs(after[0, 0] - before[0, 0]).max() > 1e-4
        assert np.abs(after[0, 1] - before[0, 1]).max() > 1e-4  # one <SEG>, both views


def test_the_fine_stage_refines_the_coarse_one(decode):
    run, params, images, seg = decode
    coarse, fine = run(params, images, seg)
    stages = {"coarse_decoder": (True, True), "coarse_prompt": (True, True), "fine_decoder": (False, True)}
    for name, (moves_coarse, moves_fine) in stages.items():
        changed = {**params, name: jax.tree.map(lambda x: x * 1.5, params[name])}
        new_coarse, new_fine = run(changed, images, seg)
        assert (np.abs(new_coarse - coarse).max() > 1e-5) == moves_coarse
        assert (np.abs(new_fine - fine).max() > 1e-6) == moves_fine


def test_positions_are_fourier_features_of_x_then_y(micro):
    module = stacking.fill(Segmentation(micro.config), micro.params["segmentation"])
    matrix = np.asarray(micro.params["segmentation"]["coarse_prompt"]["gaussian_matrix"])
    row, column = 1, 2  # of a grid of 4
    center = np.array([(column + 0.5) / 4, (row + 0.5) / 4])
    angles = 2 * np.pi * (2 * center - 1) @ matrix
    expected = np.concatenate([np.sin(angles), np.cos(angles)])
    np.testing.assert_allclose(module.coarse_prompt.positions()[row * 4 + column], expected, atol=1e-5)


def test_a_grid_that_does_not_fit_the_image_is_refused(micro):
    config = dataclasses.replace(
        micro.config, segmentation=dataclasses.replace(micro.config.segmentation, feature_grid=5)
    )
    with pytest.raises(ConfigError, match="image_size 32 to be an even multiple of feature_grid 5; try feature_grid 4"):
        stacking.abstract_params(config)


def test_the_sam_encoder_takes_the_place_of_the_small_one_and_is_frozen(micro):
    segmentation = dataclasses.replace(micro.config.segmentation, image_encoder="sam", sam_variant="vit_b")
    config = dataclasses.replace(micro.config, segmentation=segmentation)
    params = stacking.abstract_params(config)
    frozen = stacking.trainable(config)["segmentation"]
    assert not any(jax.tree.leaves(frozen["image_encoder"]))
    assert all(jax.tree.leaves(frozen["seg_projection"]))
    outputs = jax.eval_shape(lambda p: stacking.bind(config, p)(micro.batch, train=True), params)
    assert outputs.mask_logits.shape == (3, 2, 16, 16)


@pytest.fixture(scope="module")
def with_sam(micro, random_params):
    """The micro network with a SAM of one group, its parameters, and the same network given SAM's features."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(image_encoders.SAM_SIZES, "vit_b", image_encoders.SamSize(8, 2, 1, 1, window=2))
        replace = dataclasses.replace
        segmentation = replace(micro.config.segmentation, image_encoder="sam")
        inside = replace(
            micro.config,
            segmentation=segmentation,
            geometry=replace(micro.config.geometry, weight=0.0),
            keypoint=replace(micro.config.keypoint, weight=0.0),
        )
        given = replace(inside, segmentation=replace(segmentation, source="precomputed"))
        params = stacking.initialize(inside, jax.random.key(0))
        params["segmentation"]["image_encoder"] = random_params(image_encoders.SamEncoder(inside))
        yield inside, params, given


def test_precomputed_features_give_the_masks_of_the_encoder_inside(with_sam, micro):
    inside, params, given = with_sam
    seg = jax.random.normal(jax.random.key(3), (3, 32))

    @jax.jit
    def encode(images):
        network = stacking.bind(inside, params)
        return network.segmentation.encode(images), network.segment(seg, {"images": images})[1]

    @jax.jit
    def segment(features):
        without = {name: part for name, part in params["segmentation"].items() if name != "image_encoder"}
        network = stacking.bind(given, {**params, "segmentation": without})
        return network.segment(seg, {"segmentation_features": features})[1]

    features, expected = encode(micro.batch["images"])
    features = np.asarray(features, np.float16)
    spec = batch_spec(Config(model=given), 3)["segmentation_features"]
    assert (features.shape, features.dtype) == (spec.shape, spec.dtype)
    assert 0.3 < np.abs(features).mean() < 3  # of no size that half precision would lose
    own, others = segment(features), segment(np.roll(features, 1, axis=0))
    scale = np.abs(expected).max()
    np.testing.assert_allclose(own, expected, atol=2e-3 * scale)
    assert np.abs(others - expected).max() > 0.02 * scale


def test_precomputed_features_that_do_not_fit_are_refused_in_a_sentence(with_sam):
    _, _, given = with_sam
    params = stacking.abstract_params(given)
    assert "image_encoder" not in params["segmentation"]
    batch = fake_batch(Config(model=given), 2)

    def run(batch):
        return jax.eval_shape(lambda p: stacking.bind(given, p)(batch, train=True), params)

    with pytest.raises(ConfigError, match=r"segmentation_features have shape \(2, 3, 4, 16\) .* needs \(2, 4, 4, 16\)"):
        run({**batch, "segmentation_features": batch["segmentation_features"][:, :, 1:]})
    with pytest.raises(ConfigError, match="reads segmentation_features from the batch, which has none; make them"):
        run({name: x for name, x in batch.items() if name != "segmentation_features"})
    with pytest.raises(ConfigError, match="does not hold SAM's image encoder"):
        jax.eval_shape(lambda p: stacking.bind(given, p).segmentation.encode(batch["images"]), params)


def test_a_trained_encoder_has_no_features_to_precompute(micro):
    config = dataclasses.replace(
        micro.config, segmentation=dataclasses.replace(micro.config.segmentation, source="precomputed")
    )
    with pytest.raises(ConfigError, match="'precomputed' needs image_encoder 'sam': the small encoder is trained"):
        stacking.abstract_params(config)
