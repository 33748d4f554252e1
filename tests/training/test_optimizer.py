"""The schedule, what is decayed, what is frozen."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax.config import ConfigError
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from pokevla_jax.sharding import flatten
from pokevla_jax.training import optimizer


def test_schedule_warms_up_and_ends_at_the_floor():
    config = OptimizerConfig(learning_rate=0.4, warmup_steps=4, final_learning_rate_fraction=0.1)
    rates = np.array([optimizer.learning_rate_schedule(config, 24)(step) for step in range(25)])
    np.testing.assert_allclose(rates[:5], [0.1, 0.2, 0.3, 0.4, 0.4], rtol=1e-6)
    np.testing.assert_allclose(rates[14], 0.4 * 0.55, rtol=1e-5)  # half way: the mean of peak and floor
    np.testing.assert_allclose(rates[24], 0.04, rtol=1e-5)
    assert np.all(np.diff(rates[4:]) <= 0)


def test_update_is_clipped_and_decays_matrices_alone():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=0, weight_decay=0.1, clip_norm=1.0)
    tx = optimizer.make_optimizer(config, 1000)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = tx.update(zero, tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05, rtol=1e-5)
    np.testing.assert_allclose(updates["bias"], 0.0)
    grads = {"kernel": jnp.full((2, 2), 30.0), "bias": jnp.full(2, 40.0)}
    _, state = tx.update(grads, tx.init(params), params)
    norm = np.sqrt(4 * 30.0**2 + 2 * 40.0**2)
    np.testing.assert_allclose(state[1][0].mu["bias"], 0.1 * 40.0 / norm, rtol=1e-5)


def test_of_the_network_only_matrices_are_decayed():
    params = stacking.abstract_params(presets.tiny())
    decayed = flatten(optimizer.decay_mask(params))
    for name, leaf in flatten(params).items():
        own_rank = len(leaf.shape) - name.count("blocks/") - name.count("layers/")
        if decayed[name]:
            assert own_rank >= 2, name
        else:
            assert not name.endswith("kernel"), name
    assert np.mean([decayed[name] for name in decayed if name.endswith("kernel")]) > 0.5
    assert not any(value for name, value in decayed.items() if "embed_tokens" in name or "bias" in name)


def test_split_and_merge_are_inverse_and_a_useless_pattern_is_refused():
    tree = {"a": {"kernel": 1, "bias": 2}, "b": {"c": {"kernel": 3}}}
    trainable = {"a": {"kernel": True, "bias": False}, "b": {"c": {"kernel": True}}}
    names = optimizer.frozen_names(trainable, ("b/.*",))
    assert names == {"a/bias", "b/c/kernel"}
    trained, frozen = optimizer.split(tree, names)
    assert trained == {"a": {"kernel": 1}}
    assert frozen == {"a": {"bias": 2}, "b": {"c": {"kernel": 3}}}
    assert optimizer.merge(trained, frozen) == tree
    with pytest.raises(ConfigError, match=r"freeze 'vision' matches no parameter; paths begin with: a, b"):
        optimizer.frozen_names(trainable, ("vision",))
