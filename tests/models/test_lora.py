"""Adapters: where they are, what they start as, and that merging them changes nothing."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import ConfigError
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.models import lora as lora_lib
from pokevla_jax.models import stacking
from pokevla_jax.models.lora import Lora
from pokevla_jax.models.stacking import Variant
from pokevla_jax.sharding import flatten
from pokevla_jax.sharding import unflatten

LORA = Lora(rank=2, alpha=4.0, targets=OptimizerConfig().lora_targets)


@pytest.fixture(scope="module")
def adapted(micro):
    """The micro network with adapters whose second matrices are not zero."""
    variant = Variant("vla", LORA)
    fresh = jax.device_get(stacking.initialize(micro.config, jax.random.key(0), variant))
    rng = np.random.default_rng(1)
    moved = {
        name: rng.normal(0, 0.3, leaf.shape).astype(np.float32) if name.endswith("lora_b") else leaf
        for name, leaf in flatten(fresh).items()
    }
    return SimpleNamespace(variant=variant, fresh=fresh, moved=unflatten(moved))


def encode(micro, params, variant=stacking.POLICY):
    inputs = (micro.batch["images"], micro.batch["tokens"], micro.batch["token_mask"])
    hidden = jax.jit(lambda p, *x: stacking.bind(micro.config, p, variant).encode(*x))(params, *inputs)
    return np.concatenate([x.reshape(-1) for x in jax.tree.leaves(jax.device_get(hidden))])


def test_every_linear_map_of_the_vision_language_model_is_adapted(micro, adapted):
    names = flatten(adapted.fresh)
    kernels = {name for name in names if name.endswith("/kernel")}
    expected = {name for name in kernels if name.startswith(("vision/", "language/")) and "patch_embed" not in name}
    assert {name.replace("lora_a", "kernel") for name in names if name.endswith("lora_a")} == expected
    blocks = adapted.fresh["vision"]["dinov2"]["blocks"]["attention"]
    assert blocks["qkv"]["lora_a"].shape == (2, 16, 2)  # layers, width, rank
    assert blocks["qkv"]["lora_b"].shape == (2, 2, 3, 2, 8)  # layers, rank, 3, heads, head_dim
    assert blocks["proj"]["lora_a"].shape == (2, 2, 8, 2)
    axes = stacking.logical_axes(micro.config, adapted.variant)["vision"]["dinov2"]["blocks"]["attention"]
    assert axes["qkv"]["lora_a"] == ("layers", "embed", None)
    assert axes["qkv"]["lora_b"] == ("layers", None, None, "heads", "head_dim")


def test_a_fresh_adapter_changes_nothing_and_leaves_the_start_of_the_rest(micro, adapted):
    base = {name: leaf for name, leaf in flatten(adapted.fresh).items() if not lora_lib.ADAPTER.search(name)}
    jax.tree.map(np.testing.assert_array_equal, unflatten(base), micro.params)
    first = [leaf for name, leaf in flatten(adapted.fresh).items() if name.endswith("lora_a")]
    pooled = np.concatenate([leaf.reshape(-1) for leaf in first])
    assert abs(pooled.std() - 1 / LORA.rank) < 0.05
    np.testing.assert_array_equal(encode(micro, adapted.fresh, adapted.variant), encode(micro, micro.params))


def test_merged_the_network_is_the_same(micro, adapted):
    merged = lora_lib.merge(adapted.moved, LORA)
    assert flatten(merged).keys() == flatten(micro.params).keys()
    actual, expected = encode(micro, merged), encode(micro, adapted.moved, adapted.variant)
    assert np.abs(expected - encode(micro, micro.params)).max() > 0.1  # the adapters do something
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    # And by the definition, for one layer.
    linear = adapted.moved["language"]["layers"]["attention"]["o_proj"]
    product = np.einsum("hkr,rd->hkd", linear["lora_a"][1], linear["lora_b"][1]) * 4.0 / 2
    kernel = merged["language"]["layers"]["attention"]["o_proj"]["kernel"][1]
    np.testing.assert_allclose(kernel, linear["kernel"][1] + product, atol=1e-6)


def test_a_rounded_kernel_is_merged_in_float32(adapted):
    rounded = {
        name: leaf.astype(jnp.bfloat16) if name.endswith("kernel") else leaf
        for name, leaf in flatten(adapted.moved).items()
    }
    merged = flatten(lora_lib.merge(unflatten(rounded), LORA))
    name = "language/layers/mlp/up_proj/kernel"
    assert merged[name].dtype == jnp.float32
    exact = flatten(lora_lib.merge(adapted.moved, LORA))[name]
    assert 0 < np.abs(merged[name] - exact).max() < 0.01
    assert merged["action_head/out/kernel"].dtype == jnp.bfloat16  # untouched


def test_what_is_adapted_is_frozen(micro, adapted):
    trained = flatten(stacking.trainable(micro.config, adapted.variant))
    assert not trained["language/layers/attention/q_proj/kernel"]
    assert not trained["language/layers/attention/q_proj/bias"]
    assert trained["language/layers/attention/q_proj/lora_a"]
    assert trained["vision/dinov2/patch_embed/kernel"]
    assert trained["action_head/out/kernel"]


def test_a_target_that_matches_nothing_is_refused(micro):
    wrong = dataclasses.replace(LORA, targets=("language/layer/.*",))
    with pytest.raises(ConfigError, match=r"lora_targets 'language/layer/\.\*' matches no linear map"):
        stacking.abstract_params(micro.config, Variant("vla", wrong))
