"""Leaf layers against independent numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax import sharding
from pokevla_jax.config import MeshConfig
from pokevla_jax.models import attention
from pokevla_jax.models import layers
from pokevla_jax.models import stacking
from pokevla_jax.models.attention import Source


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def numpy_attention(q, k, v, mask=None, gain=1.0, bias=0.0):
    b, s, h, d = q.shape
    group = h // k.shape[2]
    out = np.zeros(q.shape)
    for i in range(b):
        for head in range(h):
            logits = q[i, :, head] @ k[i, :, head // group].T / math.sqrt(d) * gain + bias
            if mask is not None:
                logits = np.where(mask[i], logits, -np.inf)
            weights = np.exp(logits - logits.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[i, :, head] = weights @ v[i, :, head // group]
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_attend_is_grouped_query_attention_within_segments(rng, causal):
    q, k, v = rng.normal(size=(2, 7, 4, 6)), rng.normal(size=(2, 7, 2, 6)), rng.normal(size=(2, 7, 2, 6))
    segments = np.array([[1, 1, 2, 2, 2, 0, 0], [1, 1, 0, 1, 1, 1, 1]])
    mask = (segments[:, :, None] == segments[:, None, :]) & (np.tril(np.ones((7, 7), bool)) if causal else True)
    source = Source(jnp.float32(k), jnp.float32(v))
    out = attention.attend(jnp.float32(q), source, segments=jnp.asarray(segments), causal=causal)
    np.testing.assert_allclose(out, numpy_attention(q, k, v, mask), atol=1e-5)


def test_attend_takes_one_softmax_over_all_sources(rng):
    q = rng.normal(size=(1, 3, 2, 4))
    a, b = rng.normal(size=(2, 1, 5, 2, 4)), rng.normal(size=(2, 1, 6, 2, 4))
    out = attention.attend(jnp.float32(q), Source(*jnp.float32(a)), Source(*jnp.float32(b)))
    joined = np.concatenate([a, b], axis=2)
    np.testing.assert_allclose(out, numpy_attention(q, *joined), atol=1e-5)


def test_gain_and_bias_act_on_the_logits(rng):
    q, k, v = rng.normal(size=(3, 1, 4, 1, 4))
    bias = rng.normal(size=(1, 1, 4, 4))
    source = Source(jnp.float32(k), jnp.float32(v), gain=jnp.float32(0.3), bias=jnp.float32(bias))
    expected = numpy_attention(q, k, v, gain=0.3, bias=bias[0, 0])
    np.testing.assert_allclose(attention.attend(jnp.float32(q), source), expected, atol=1e-5)


def test_masks_and_positions_skip_padding_in_the_middle():
    valid = jnp.array([[True, True, False, True]])
    np.testing.assert_array_equal(attention.positions(valid)[0], [0, 1, 1, 2])
    expected = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [1, 1, 0, 1]]
    segments = valid.astype(jnp.int32)
    np.testing.assert_array_equal(attention.visible(segments, causal=True)[0], np.array(expected, bool))


def test_rotation_turns_pairs_by_their_angle(rng):
    x = rng.normal(size=(1, 3, 2, 6))
    positions = np.array([[0, 2, 5]])
    out = layers.rotate(jnp.float32(x), layers.rotary_table(jnp.asarray(positions), 6, 100.0))
    for step, position in enumerate(positions[0]):
        for i in range(3):  # dimension i with dimension i + 3, as one complex number
            turned = (x[0, step, :, i] + 1j * x[0, step, :, i + 3]) * np.exp(1j * position * 100.0 ** (-2 * i / 6))
            np.testing.assert_allclose(out[0, step, :, i], turned.real, atol=1e-5)
            np.testing.assert_allclose(out[0, step, :, i + 3], turned.imag, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rotation_is_the_same_on_a_mesh(rng, dtype):
    x, weights = (jnp.asarray(rng.normal(size=(8, 3, 2, 6)), dtype) for _ in range(2))
    table = layers.rotary_table(jnp.asarray(rng.integers(0, 700, (8, 3))), 6, 100.0)

    def run():
        out, gradient = jax.jit(lambda x: jax.vjp(lambda x: layers.rotate(x, table), x))(x)
        return np.float32(out), np.float32(gradient(weights)[0])

    (out, gradient), mesh = run(), sharding.make_mesh(MeshConfig(data=8))
    with jax.set_mesh(mesh):
        out_there, gradient_there = run()
    # By a product that only moves numbers and rounds none; a gradient in bfloat16 is rounded once more on its way.
    np.testing.assert_allclose(out_there, out, rtol=0, atol=0 if dtype == jnp.bfloat16 else 1e-6)
    bound = 2**-7 if dtype == jnp.bfloat16 else 1e-6
    np.testing.assert_allclose(gradient_there, gradient, rtol=bound, atol=bound)


def test_norms(rng):
    x, scale, bias = rng.normal(size=(4, 8)) * 3 + 1, rng.normal(size=8), rng.normal(size=8)
    rms = stacking.fill(layers.RMSNorm(8, eps=1e-6), {"scale": jnp.float32(scale)})
    np.testing.assert_allclose(rms(jnp.float32(x)), x / np.sqrt((x**2).mean(-1, keepdims=True)) * scale, atol=1e-5)
    ln = stacking.fill(layers.LayerNorm(8), {"scale": jnp.float32(scale), "bias": jnp.float32(bias)})
    expected = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True) * scale + bias
    np.testing.assert_allclose(ln(jnp.float32(x)), expected, atol=1e-4)


def test_norms_keep_bfloat16_activations_but_compute_in_float32():
    ln = stacking.fill(layers.LayerNorm(4), {"scale": jnp.ones(4), "bias": jnp.zeros(4)})
    x = jnp.array([[1000.0, 1004.0, 1008.0, 1012.0]], jnp.bfloat16)
    out = ln(x)
    assert out.dtype == jnp.bfloat16
    exact = np.asarray(x, np.float64)
    exact = (exact - exact.mean()) / exact.std()
    np.testing.assert_allclose(np.asarray(out, np.float32), exact, atol=1e-2)


def test_the_gradients_written_by_hand_are_the_gradients(rng):
    x, w, g = (jnp.float32(rng.normal(size=shape)) for shape in [(3, 5, 4), (5, 4), (3, 5, 4)])
    for ours, plain in [(layers.add_bias, jnp.add), (layers.multiply, jnp.multiply)]:
        actual, expected = jax.vjp(ours, x, w)[1](g), jax.vjp(plain, x, w)[1](g)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), actual, expected)


def test_products_of_bfloat16_are_summed_in_float32_and_rounded_once(rng):
    x, y, g = (jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in [(3, 2000), (2000, 5), (3, 5)])
    exact = np.asarray(x, np.float64) @ np.asarray(y, np.float64)
    out, gradient = jax.vjp(lambda x, y: layers.summed_in_float32(jnp.matmul, x, y), x, y)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float64), exact, rtol=2**-8)  # half a unit in the last of 8 bits
    for actual, expected in zip(gradient(g), jax.vjp(jnp.matmul, x, y)[1](g), strict=True):
        assert actual.dtype == jnp.bfloat16
        np.testing.assert_array_equal(actual, expected)


def test_linear_maps_between_groups_of_axes(rng, random_params):
    linear = layers.Linear((2, 3), (4, 5), axes=("heads", "head_dim", None, "embed"))
    params = random_params(linear)
    x = rng.normal(size=(7, 2, 3))
    expected = np.einsum("nij,ijkl->nkl", x, params["kernel"]) + params["bias"]
    np.testing.assert_allclose(stacking.fill(linear, params)(jnp.float32(x)), expected, atol=1e-5)


def test_gelu_is_exact():
    x = np.linspace(-4, 4, 41)
    expected = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    np.testing.assert_allclose(layers.gelu(jnp.float32(x)), expected, atol=1e-6)
