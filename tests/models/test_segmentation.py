"""Coarse-to-fine decoding from the <SEG> state."""

import dataclasses

import jax
import numpy as np
import pytest

from pokevla_jax.config import ConfigError
from pokevla_jax.models import stacking
from pokevla_jax.models.segmentation import Segmentation


@pytest.fixture(scope="module")
def decode(micro):
    module = Segmentation(micro.config)
    run = jax.jit(lambda params, images, seg: stacking.fill(module, params)(images, seg))
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
