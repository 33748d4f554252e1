"""The splash kernel, interpreted on the CPU, against XLA's attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax import sharding
from pokevla_jax.config import MeshConfig
from pokevla_jax.models import attention
from pokevla_jax.models import splash
from pokevla_jax.models.attention import Source
from tests.models.attending import assert_close
from tests.models.attending import compare
from tests.models.attending import problem


@pytest.fixture
def interpreted(monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)
    monkeypatch.setattr(splash, "LARGEST_BLOCK", splash.LANES)
    monkeypatch.setattr(attention, "SHORT", 0)


@pytest.mark.parametrize(
    ("length", "heads", "groups", "width", "causal"),
    [
        # the language model: grouped heads of 64, causal, padding in the middle, a length that fills no whole block;
        # two rows of blocks, the second with the keys of both
        (150, 4, 2, 64, True),
        # a head's own keys: one kernel, whose backward pass has two blocks of keys
        pytest.param(150, 2, 2, 64, True, marks=pytest.mark.slow),
        # a tower: heads of 72, everything sees everything, a length that leaves a part of a block
        pytest.param(133, 2, 2, 72, False, marks=pytest.mark.slow),
    ],
)
def test_it_is_attention(interpreted, length, heads, groups, width, causal):
    arrays = problem(length, heads, groups, width)
    segments = None
    if causal:
        segments = np.ones((1, length), np.int32)
        segments[0, 60:75] = attention.PADDING
        segments[0, 120:] = 2
    segments = segments if segments is None else jnp.asarray(segments)
    actual = compare(arrays, segments, causal, "splash")
    assert_close(actual, compare(arrays, segments, causal, "xla"))


@pytest.mark.slow
def test_more_keys_than_one_block_holds(interpreted, monkeypatch):
    arrays = problem(256, 4, 2, 64)
    expected = compare(arrays, None, True, "xla")
    monkeypatch.setattr(splash, "MOST_KEYS", 128)
    assert_close(compare(arrays, None, True, "splash"), expected)


@pytest.mark.parametrize(("rows", "keys", "causal"), [(4, 4, True), (1, 3, True), (3, 3, False)])
def test_the_work_it_names_is_what_the_mask_leaves(rows, keys, causal):
    """The library's own list of blocks, one entry each: 0 where the mask empties it."""
    size = splash.LANES
    mask = splash._kernel(2, rows * size, keys * size, size, causal).fwd_mask_info.block_mask
    left = rows * keys if mask is None else int(np.count_nonzero(mask[0]))
    assert splash._work(rows, keys, causal) == f"blocks_{left}_of_{rows * keys}"


@pytest.mark.slow
def test_on_a_mesh_each_device_takes_its_rows_and_heads(interpreted):
    arrays = problem(128, 4, 2, 64, rows=4)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with jax.set_mesh(mesh):
        actual = compare(arrays, None, True, "splash")
    assert_close(jax.device_get(actual), compare(arrays, None, True, "xla"))


def test_only_xla_joins_several_sources():
    q, k, v = problem(4, 2, 2, 8)
    with pytest.raises(ValueError, match="takes one source without gain and bias"):
        attention.attend(q, Source(k, v), Source(k, v), implementation="splash")


def test_off_a_tpu_it_refuses_instead_of_computing_something_else():
    q, k, v = problem(128, 2, 2, 64)
    with pytest.raises(ValueError, match="interpret mode"):
        jax.jit(lambda *x: attention.attend(x[0], Source(*x[1:]), causal=True, implementation="splash"))(q, k, v)


def test_queries_may_be_wider_than_values(interpreted):
    queries, keys, _ = problem(200, heads=2, groups=2, width=40)
    values = problem(200, heads=2, groups=2, width=24)[2]
    outputs = [
        jax.jit(lambda q, k, v, how=how: attention.attend(q, Source(k, v), implementation=how))(queries, keys, values)
        for how in ("splash", "xla")
    ]
    assert outputs[0].shape == (1, 200, 2, 24)
    np.testing.assert_allclose(outputs[0], outputs[1], atol=2e-5)
    chunks = attention.attend_in_chunks(queries, Source(keys, values), size=64)
    np.testing.assert_allclose(chunks, outputs[1], atol=2e-5)
