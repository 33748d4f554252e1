"""Attention in blocks of queries, against XLA's with all logits at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax import sharding
from pokevla_jax.config import MeshConfig
from pokevla_jax.models import attention
from pokevla_jax.models import blockwise
from pokevla_jax.models.attention import Source
from tests.models.attending import assert_close
from tests.models.attending import compare
from tests.models.attending import problem


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(blockwise, "BLOCK", 16)


def packed(rows, length):
    """Two conversations in each row, the first with padding in its middle, and padding behind them."""
    segments = np.ones((rows, length), np.int32)
    segments[:, length // 4 : length // 3] = attention.PADDING
    segments[:, length // 2 :] = 2
    segments[1:, -length // 8 :] = attention.PADDING
    return jnp.asarray(segments)


@pytest.mark.parametrize(
    ("length", "heads", "groups", "width"),
    # grouped heads, two blocks and a part of one; a part alone
    [(40, 4, 2, 8), (10, 3, 3, 5)],
)
@pytest.mark.parametrize("segmented", [True, False])
def test_it_is_causal_attention(small_blocks, length, heads, groups, width, segmented):
    arrays = problem(length, heads, groups, width, rows=2)
    segments = packed(2, length) if segmented else None
    expected = compare(arrays, segments, True, "xla")
    assert_close(compare(arrays, segments, True, "blockwise"), expected)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sharding, "cores_per_device", lambda: 2)
        assert_close(compare(arrays, segments, True, "blockwise"), expected)


def test_where_two_cores_are_a_device_it_takes_towers_too(monkeypatch):
    arrays = problem(21, 2, 2, 8, rows=2)
    expected = compare(arrays, None, False, "xla")
    monkeypatch.setattr(sharding, "cores_per_device", lambda: 2)
    monkeypatch.setattr(attention, "_xla", None)
    assert_close(compare(arrays, None, False, "blockwise"), expected)


def test_logits_of_thousands_are_no_trouble(small_blocks):
    q, k, v = problem(40, 2, 2, 8)
    arrays = [100 * q, 100 * k, v]
    actual, expected = (compare(arrays, None, True, how) for how in ("blockwise", "xla"))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(actual))
    np.testing.assert_allclose(actual[0], expected[0], atol=1e-3)


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(fsdp=2, tensor=4)])
def test_on_a_mesh_each_device_takes_its_rows_and_heads(small_blocks, mesh):
    arrays, segments = problem(40, 4, 2, 8, rows=4), packed(4, 40)
    with jax.set_mesh(sharding.make_mesh(mesh)):
        actual = compare(arrays, segments, True, "blockwise")
    assert_close(jax.device_get(actual), compare(arrays, segments, True, "xla"))


def test_the_logits_of_all_positions_never_exist_together():
    q, k, v = problem(512, 2, 1, 16)

    def bytes_of(how):
        def loss(q, k, v):
            return jnp.sum(jnp.sin(attention.attend(q, Source(k, v), causal=True, implementation=how)))

        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(q, k, v).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert bytes_of("blockwise") < bytes_of("xla") / 2


def test_without_a_mask_it_is_what_splash_is(monkeypatch):
    monkeypatch.setattr(attention.splash, "attend", lambda *_, **__: "kernel")
    q = np.zeros((1, attention.SHORT + 1, 1, 2), np.float32)
    assert isinstance(attention.attend(q, Source(q, q), implementation="blockwise"), str)
    short = q[:, :4]
    assert attention.attend(short, Source(short, short), implementation="blockwise").shape == short.shape
