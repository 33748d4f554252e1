"""Chunked cross-entropy against the plain one, gradients included, and what it holds in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax import sharding
from pokevla_jax.config import MeshConfig
from pokevla_jax.training.token_loss import token_loss

B, S, D, VOCAB = 8, 6, 16, 40


def problem(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    states, table = rng.normal(size=(B, S, D)), rng.normal(size=(VOCAB, D))
    targets, mask = rng.integers(0, VOCAB, (B, S)), rng.random((B, S)) < 0.6
    return jnp.asarray(states, dtype), jnp.float32(table), jnp.asarray(targets), jnp.asarray(mask)


def plain(states, table, targets, mask, z_loss=0.0):
    """By the definition, all logits at once."""
    logits = jnp.einsum("bsd,vd->bsv", states.astype(jnp.float32), table)
    log_p = jax.nn.log_softmax(logits)
    entropy = -jnp.take_along_axis(log_p, targets[..., None], -1)[..., 0]
    log_total = jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(jnp.where(mask, entropy + z_loss * log_total**2, 0.0)) / 7


def chunked(states, table, targets, mask, z_loss=0.0, chunk=5):
    return token_loss(states, table, targets, mask, chunk, z_loss)[0] / 7


def assert_same(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        rms = np.sqrt(np.mean(np.square(b)))
        assert np.max(np.abs(np.asarray(a) - np.asarray(b))) < 1e-5 * rms


@pytest.mark.parametrize("z_loss", [0.0, 0.01])
def test_loss_and_gradients_are_those_of_log_softmax(z_loss):
    arguments = problem()
    both = (jax.jit(jax.value_and_grad(f, argnums=(0, 1)), static_argnums=4) for f in (chunked, plain))
    assert_same(*(f(*arguments, z_loss) for f in both))
    # The second sum is the cross-entropy alone, whatever is minimised beside it.
    _, entropy = token_loss(*arguments, 5, z_loss)
    np.testing.assert_allclose(entropy / 7, plain(*arguments), rtol=1e-5)


@pytest.mark.parametrize("mesh", [MeshConfig(data=2, fsdp=2, tensor=2), MeshConfig(data=1, fsdp=1, tensor=8)])
def test_on_a_mesh_it_is_the_same(mesh):
    mesh = sharding.make_mesh(mesh)
    states, table, targets, mask = problem()
    expected = jax.value_and_grad(plain, argnums=(0, 1))(states, table, targets, mask)
    rows = sharding.batch_sharding(mesh)
    placed = sharding.param_shardings({"table": table}, {"table": ("vocab", "embed")}, mesh)["table"]
    with jax.set_mesh(mesh):
        arguments = jax.device_put((states, table, targets, mask), (rows, placed, rows, rows))
        actual = jax.jit(jax.value_and_grad(chunked, argnums=(0, 1)))(*arguments)
    assert_same(actual, expected)
    assert actual[1][1].sharding.is_equivalent_to(placed, 2)


def test_without_a_gradient_of_the_table_none_is_computed():
    states, table, targets, mask = problem()
    gradient = jax.grad(lambda x: chunked(x, table, targets, mask))
    assert_same(gradient(states), jax.grad(lambda x: plain(x, table, targets, mask))(states))
    assert str(jax.make_jaxpr(gradient)(states)).count("dot_general") == 2  # logits, and back to the states


def test_bfloat16_states_lose_only_their_own_precision():
    states, table, targets, mask = problem(jnp.bfloat16)
    value, (d_states, d_table) = jax.value_and_grad(chunked, argnums=(0, 1))(states, table, targets, mask)
    expected, (e_states, e_table) = jax.value_and_grad(plain, argnums=(0, 1))(states, table, targets, mask)
    np.testing.assert_allclose(value, expected, rtol=5e-3)
    assert d_states.dtype == jnp.bfloat16
    assert d_table.dtype == jnp.float32
    for a, b in ((d_states, e_states), (d_table, e_table)):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        assert np.sqrt(np.mean((a - b) ** 2)) < 0.02 * np.sqrt(np.mean(b**2))


def test_the_logits_of_all_tokens_are_never_in_memory():
    tokens, vocabulary, width, chunk = 2048, 2048, 8, 64
    shapes = [
        jax.ShapeDtypeStruct((1, tokens, width), jnp.float32),
        jax.ShapeDtypeStruct((vocabulary, width), jnp.float32),
        jax.ShapeDtypeStruct((1, tokens), jnp.int32),
        jax.ShapeDtypeStruct((1, tokens), jnp.bool_),
    ]
    gradient = jax.value_and_grad(lambda *x: chunked(*x, chunk=chunk), argnums=(0, 1))
    peak = jax.jit(gradient).lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    logits_of_a_chunk = 4 * chunk * vocabulary
    assert peak < 10 * logits_of_a_chunk < 4 * tokens * vocabulary / 3
