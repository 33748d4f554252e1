"""Bad steps: what counts as one, that skipping leaves the state as it was, and that stopping names the step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax import checkpoints
from pokevla_jax import sharding
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.training import guard
from pokevla_jax.training import loop
from pokevla_jax.training import metrics
from pokevla_jax.training.optimizer import make_optimizer
from pokevla_jax.training.state import StateFactory
from pokevla_jax.training.step import abstract_batch
from pokevla_jax.training.step import make_train_step
from tests.training import toy

MESH = {"mesh__data": 1, "mesh__replica": 8}  # the test process has eight devices
SPIKES = OptimizerConfig(spike_sigmas=4.0, spike_window=20)


def verdicts(losses, config=SPIKES):
    """Which steps of a run with these losses are bad, and the memory at its end."""

    def step(monitor, loss):
        bad, monitor = guard.judge(monitor, loss, jnp.float32(1.0), config)
        return monitor, bad

    monitor, bad = jax.lax.scan(step, guard.Monitor.initial(), jnp.asarray(losses, jnp.float32))
    return np.asarray(bad), monitor


def test_spikes_and_what_is_not_finite_are_bad_and_nothing_else():
    losses = 2.0 + 0.1 * np.random.default_rng(0).normal(size=60)
    assert not verdicts(losses)[0].any()
    losses[[30, 40, 41]] = 3.0, np.nan, np.inf
    bad, monitor = verdicts(losses)
    assert np.flatnonzero(bad).tolist() == [30, 40, 41]
    # Bad steps leave no trace in what the next ones are compared with.
    _, without = verdicts(np.delete(losses, [30, 40, 41]))
    jax.tree.map(np.testing.assert_array_equal, monitor, without)
    assert np.isclose(monitor.mean[0], 2.0, atol=0.1)
    assert np.isclose(np.sqrt(monitor.variance[0]), 0.1, atol=0.05)


def test_a_young_average_and_a_switched_off_one_call_nothing_a_spike():
    losses = np.concatenate([np.full(10, 1.0), [9.0]])
    assert not verdicts(losses)[0].any()
    losses = np.concatenate([np.linspace(1, 1.2, 30), [9.0]])
    assert np.flatnonzero(verdicts(losses)[0]).tolist() == [30]
    assert not verdicts(losses, dataclasses.replace(SPIKES, spike_sigmas=0.0))[0].any()


def test_bad_steps_in_a_row_are_counted():
    _, monitor = verdicts([1.0, np.nan, 1.0, np.nan, np.nan])
    assert (int(monitor.count), int(monitor.bad_in_a_row)) == (2, 2)


class Poisoned(toy.Batches):
    """Some steps' labels are multiplied by ``factors[step]``."""

    factors = {6: np.float32("nan")}

    def __next__(self):
        batch = super().__next__()
        return {**batch, "y": batch["y"] * self.factors.get(self.step, np.float32(1))}


class Spiked(Poisoned):
    factors = {9: np.float32(1e3)}


class Hopeless(Poisoned):
    factors = dict.fromkeys(range(5, 99), np.float32("inf"))


def test_a_skipped_step_changes_nothing_but_the_count():
    config = toy.config(**MESH, optimizer__on_bad_step="skip", optimizer__ema_decay=0.9)
    objective, mesh = toy.objective(), sharding.make_mesh(config.mesh)
    optimizer = make_optimizer(config.optimizer, config.num_steps)
    factory = StateFactory(objective, config.optimizer, optimizer, mesh)
    step = make_train_step(objective, config, optimizer, mesh, factory.abstract, abstract_batch(toy.SPEC, mesh))

    def take(state, batch):
        state, scalars = step(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
        return state, jax.device_get(state), jax.device_get(scalars)

    state, before, _ = take(factory.initialize(0), toy.batch(0))
    state, after, scalars = take(state, {**toy.batch(1), "y": toy.batch(1)["y"] * np.float32("nan")})
    assert scalars[guard.BAD] == 1
    assert (before.step, after.step) == (1, 2)
    for name in ("trained", "opt_state", "ema"):
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), getattr(after, name))
    _, again, scalars = take(state, toy.batch(1))
    assert scalars[guard.BAD] == 0
    assert not np.array_equal(after.trained["head"]["kernel"], again.trained["head"]["kernel"])


def train(workdir, data, **changes):
    return loop.train(toy.config(**MESH, **changes), workdir, toy.objective(0.1), data)


def test_the_log_says_what_was_skipped_and_its_means_are_of_the_rest(tmp_path):
    train(tmp_path, toy.data(Poisoned), optimizer__on_bad_step="skip")
    lines = [x for x in metrics.read_metrics(tmp_path) if x["split"] == "train"]
    assert [x["skipped"] for x in lines] == [0, 0, 1, 0, 0, 0]
    assert all(x["loss"] is not None for x in lines)


def test_too_many_skips_and_a_spike_stop_the_run_naming_the_step(tmp_path):
    message = "diverged at step 7: .* not finite, number 3 of bad steps in a row"
    with pytest.raises(metrics.DivergedError, match=message):
        train(tmp_path / "a", toy.data(Hopeless), optimizer__on_bad_step="skip", optimizer__max_skipped=3)
    with pytest.raises(metrics.DivergedError, match=r"diverged at step 9: loss .* is a spike; .*on_bad_step = .skip"):
        train(tmp_path / "b", toy.data(Spiked), optimizer__spike_sigmas=6.0, optimizer__spike_window=4)
    assert checkpoints.all_steps(tmp_path / "b" / "checkpoints")[-1] < 9
