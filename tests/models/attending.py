"""Problems for two ways to compute the same attention."""

import jax
import jax.numpy as jnp
import numpy as np

from pokevla_jax.models import attention
from pokevla_jax.models.attention import Source


def problem(length, heads, groups, width, rows=1):
    rng = np.random.default_rng(0)
    shapes = [(rows, length, heads, width), (rows, length, groups, width), (rows, length, groups, width)]
    return [jnp.float32(rng.normal(size=shape)) for shape in shapes]


def compare(arrays, segments, causal, implementation):
    """Outputs and gradients of a weighted sum; the positions of padding, which mean nothing, have no weight."""
    weights = jnp.float32(np.random.default_rng(1).normal(size=arrays[0].shape))
    if segments is not None:
        weights *= (segments > 0)[..., None, None]

    def loss(q, k, v):
        out = attention.attend(q, Source(k, v), segments=segments, causal=causal, implementation=implementation)
        return jnp.sum(out * weights), out * (weights != 0)

    (_, out), gradients = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))(*arrays)
    return out, gradients


def assert_close(actual, expected):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5 * max(1.0, float(np.abs(b).max())))
