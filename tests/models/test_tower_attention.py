"""What ``attention="splash"`` makes of a tower: the same network, with XLA's attention where sequences are short."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import TowerConfig
from pokevla_jax.models import attention
from pokevla_jax.models import layers
from pokevla_jax.models import lora
from pokevla_jax.models import stacking
from pokevla_jax.models import vision
from pokevla_jax.models.attention import Source


@pytest.mark.parametrize(
    ("length", "causal", "segments"),
    [
        (attention.SHORT + 1, False, None),
        (4, True, None),
        (4, False, np.zeros((2, 4), np.int32)),
    ],
)
def test_what_is_long_or_masked_goes_to_the_kernel(length, causal, segments, monkeypatch):
    monkeypatch.setattr(attention.splash, "attend", lambda *_, **__: "kernel")
    q = np.zeros((2, length, 2, 3), np.float32)
    out = attention.attend(q, Source(q, q), segments=segments, causal=causal, implementation="splash")
    assert isinstance(out, str)


@pytest.mark.parametrize(("remat", "adapted"), [("none", True), ("layers", False)])
def test_a_tower_for_tpu_is_the_same_tower(remat, adapted, random_params):
    config = TowerConfig(width=8, depth=2, num_heads=2, mlp_dim=16, layer_scale=True)

    def block(implementation):
        module = vision.Block(config, implementation)
        if adapted:
            lora.adapt(module, lora.Lora(rank=2, alpha=4.0, targets=(".*",)))
        return module

    stacks = {name: stacking.stack(lambda name=name: block(name), 2) for name in ("xla", "splash")}
    params = random_params(stacks["xla"])
    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 6, 8)))

    def loss(params, name):
        return jnp.sum(jnp.sin(stacking.scan(stacking.fill(stacks[name], params), x, remat=remat)[0]))

    expected, actual = (jax.jit(jax.value_and_grad(loss), static_argnums=1)(params, name) for name in stacks)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


def test_parts_of_a_linear_map_are_its_output_cut(random_params):
    linear = layers.Linear(4, (3, 2, 5), axes=("embed", None, "heads", "head_dim"))
    linear = stacking.fill(linear, random_params(linear))
    x = jnp.float32(np.random.default_rng(0).normal(size=(2, 6, 4)))
    np.testing.assert_allclose(jnp.stack(linear.parts(x), axis=2), linear(x), rtol=1e-5, atol=1e-6)
