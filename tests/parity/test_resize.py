"""Resizes against ``torch.nn.functional.interpolate``."""

import jax
import numpy as np
import pytest
import torch

from pokevla_jax.models import resize

SIZES = [(7, 5, 16, 12), (16, 16, 37, 37), (37, 37, 16, 16), (9, 8, 9, 3), (4, 6, 1, 6)]
RNG = np.random.default_rng(0)


def theirs(x, size, method, **options):
    out = torch.nn.functional.interpolate(torch.tensor(x).permute(0, 3, 1, 2), size, mode=method, **options)
    return out.permute(0, 2, 3, 1).numpy()


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    "options",
    [{"align_corners": False}, {"align_corners": True}, {"align_corners": False, "antialias": True}],
    ids=["half_pixel", "align_corners", "antialias"],
)
def test_resizes_are_pytorchs(method, options):
    for h, w, *size in SIZES:
        x = RNG.normal(size=(2, h, w, 3)).astype(np.float32)
        ours = resize.resize(x, tuple(size), method, **options)
        np.testing.assert_allclose(ours, theirs(x, tuple(size), method, **options), atol=2e-5)


def test_the_options_differ_where_it_matters():
    x = RNG.normal(size=(1, 37, 37, 2)).astype(np.float32)
    results = [
        resize.resize(x, (16, 16), method, **options)
        for method in ("bilinear", "bicubic")
        for options in ({}, {"align_corners": True}, {"antialias": True})
    ]
    for i, a in enumerate(results):
        for b in results[:i]:
            assert np.abs(a - b).max() > 0.05
    # jax.image's cubic is neither of PyTorch's when enlarging.
    up = resize.resize(x, (50, 50), "bicubic")
    assert np.abs(up - jax.image.resize(x, up.shape, "bicubic", antialias=False)).max() > 0.05


def test_antialiasing_with_aligned_corners_is_refused():
    with pytest.raises(ValueError, match="align_corners=False only"):
        resize.weights(4, 2, "bilinear", align_corners=True, antialias=True)


def test_position_embeddings_are_resampled_as_timm_does():
    positions = RNG.normal(size=(37 * 37, 8)).astype(np.float32)
    square = torch.tensor(positions).reshape(1, 37, 37, 8).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(square, (16, 16), mode="bicubic", antialias=True)
    ours = resize.resample_positions(positions, 16)
    np.testing.assert_allclose(ours, expected.permute(0, 2, 3, 1).reshape(256, 8).numpy(), atol=2e-5)
    np.testing.assert_array_equal(resize.resample_positions(positions, 37), positions)
    with pytest.raises(ValueError, match="1368 position embeddings are not those of a square grid"):
        resize.resample_positions(positions[1:], 16)


def test_relative_positions_are_resampled_as_sam_does():
    table = RNG.normal(size=(27, 8)).astype(np.float32)
    expected = torch.nn.functional.interpolate(torch.tensor(table).T[None], 15, mode="linear")[0].T
    np.testing.assert_allclose(resize.resample_relative(table, 15), expected.numpy(), atol=2e-5)
