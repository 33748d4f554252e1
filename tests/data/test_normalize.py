import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from pokevla_jax.data.codec import DataError
from pokevla_jax.data.normalize import ColumnStatistics
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.normalize import normalize
from pokevla_jax.data.normalize import unnormalize


def test_statistics_are_those_of_all_steps(dataset, statistics):
    values = dataset.state.astype(np.float64)
    assert statistics.num_steps == len(values)
    np.testing.assert_array_equal(statistics.state.q01, np.quantile(values, 0.01, axis=0))
    np.testing.assert_array_equal(statistics.state.q99, np.quantile(values, 0.99, axis=0))
    np.testing.assert_array_equal(statistics.state.max, values.max(axis=0))
    np.testing.assert_allclose(statistics.action.std, dataset.action.astype(np.float64).std(axis=0))


def test_the_reference_formula(statistics):
    column = statistics.action
    values = np.random.default_rng(0).uniform(-1, 1, (50, 7))
    expected = np.clip(2 * (values - column.q01) / (column.q99 - column.q01 + 1e-8) - 1, -1, 1)
    moving = column.mask & ~column.near_constant
    np.testing.assert_allclose(normalize(values, column)[:, moving], expected[:, moving], atol=1e-6)


def test_the_gripper_passes_through(statistics):
    values = np.random.default_rng(0).uniform(-3, 3, (50, 7)).astype(np.float32)
    np.testing.assert_array_equal(normalize(values, statistics.action)[:, 6], values[:, 6])
    np.testing.assert_array_equal(unnormalize(values, statistics.action)[:, 6], values[:, 6])


def test_a_near_constant_dimension_is_reported_and_does_not_amplify_noise(statistics):
    np.testing.assert_array_equal(np.flatnonzero(statistics.action.near_constant), [5])
    np.testing.assert_array_equal(np.flatnonzero(statistics.state.near_constant), [6, 7])
    values = np.zeros((2, 7))
    values[:, 5] = [0.3, 0.3 + 1e-4]
    normalized = normalize(values, statistics.action)[:, 5]
    assert abs(normalized[0]) < 1e-5
    assert abs(normalized[1] - 0.02) < 1e-5
    np.testing.assert_allclose(unnormalize(normalize(values, statistics.action), statistics.action)[:, 5], values[:, 5])


@settings(max_examples=50, deadline=None)
@given(low=st.floats(-5, 5), length=st.floats(0, 5), share=st.floats(0, 1))
def test_unnormalize_inverts_normalize_between_the_quantiles(low, length, share):
    high = low + length
    bounds = {name: np.array([value]) for name, value in (("min", low), ("q01", low), ("q99", high), ("max", high))}
    column = ColumnStatistics(mean=np.array([low]), std=np.array([length]), mask=np.array([True]), floor=1e-3, **bounds)
    value = np.array([low + share * length])
    normalized = normalize(value, column)
    assert np.abs(normalized) <= 1
    np.testing.assert_allclose(unnormalize(normalized, column), value, atol=3e-6)


def test_json_is_exact(statistics):
    again = Statistics.from_json(json.loads(json.dumps(statistics.to_json())))
    for name in ("mean", "std", "min", "max", "q01", "q99", "mask", "floor"):
        np.testing.assert_array_equal(getattr(again.action, name), getattr(statistics.action, name))
    assert again.to_json() == statistics.to_json()


@pytest.mark.parametrize("damage", [lambda v: v.pop("action"), lambda v: v["state"].update(q01=[1.0])])
def test_malformed_json_is_refused(statistics, damage):
    values = statistics.to_json()
    damage(values)
    with pytest.raises(DataError, match="incomplete or malformed"):
        Statistics.from_json(values)
