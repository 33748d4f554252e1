"""The train step: sharding, accumulation, freezing, moving average, randomness."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pokevla_jax import sharding
from pokevla_jax.config import MeshConfig
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.training import state as state_lib
from pokevla_jax.training import step as step_lib
from pokevla_jax.training.optimizer import make_optimizer
from tests.training import toy

ONE = MeshConfig()
MESH_8 = MeshConfig(replica=1, data=2, fsdp=2, tensor=2)
OPTIMIZER = OptimizerConfig(learning_rate=0.01, warmup_steps=2, weight_decay=0.1)


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """The fields of ``Config`` that the step reads."""

    optimizer: OptimizerConfig
    num_steps: int = 20
    seed: int = 3


def build(optimizer, mesh, devices, noise):
    """A factory of states, the compiled step and the batch's sharding."""
    objective = toy.objective(noise)
    config = ToyConfig(optimizer)
    mesh = sharding.make_mesh(mesh, jax.devices()[:devices])
    tx = make_optimizer(optimizer, config.num_steps)
    factory = state_lib.StateFactory(objective, optimizer, tx, mesh)
    batch = step_lib.abstract_batch(toy.SPEC, mesh)
    return factory, step_lib.make_train_step(objective, config, tx, mesh, factory.abstract, batch), batch["x"].sharding


@functools.cache  # A compilation costs a second or more; several tests compare with the same run.
def run(num_steps=3, *, mesh=ONE, devices=1, noise=0.0, optimizer=OPTIMIZER):
    """The final state and the scalars of every step."""
    factory, step, placed = build(optimizer, mesh, devices, noise)
    state = factory.initialize(ToyConfig.seed)
    history = []
    for i in range(num_steps):
        state, scalars = step(state, jax.device_put(toy.batch(i), placed))
        history.append(jax.device_get(scalars))
    return state, history


@functools.cache
def initial_params():
    return jax.device_get(jax.jit(toy.initialize)(jax.random.key(ToyConfig.seed)))


def assert_close(a, b, rtol=1e-5, atol=1e-6):
    for (name, x), y in zip(sharding.flatten(a).items(), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(np.asarray(x), np.asarray(y), rtol=rtol, atol=atol, err_msg=name)


def test_a_2x2x2_mesh_computes_what_one_device_computes():
    one, history_one = run(noise=0.1)
    eight, history_eight = run(noise=0.1, mesh=MESH_8, devices=8)
    assert_close(history_one, history_eight)
    assert_close(one.params, eight.params)
    assert eight.trained["blocks"]["up"]["kernel"].sharding.spec == jax.P(None, "fsdp", "tensor")


def test_optimizer_state_and_average_are_placed_like_their_parameter():
    state, _ = run(1, mesh=MESH_8, devices=8, optimizer=dataclasses.replace(OPTIMIZER, ema_decay=0.9))
    followers = [state.ema, state.opt_state[1][0].mu, state.opt_state[1][0].nu]
    for tree in followers:
        assert jax.tree.map(lambda x: x.sharding, tree) == jax.tree.map(lambda x: x.sharding, state.trained)


@pytest.mark.parametrize(("mesh", "devices"), [(ONE, 1), (MESH_8, 8)])
def test_four_accumulated_micro_batches_equal_one_batch(mesh, devices):
    whole, history_whole = run(mesh=mesh, devices=devices)
    parts, history_parts = run(
        mesh=mesh, devices=devices, optimizer=dataclasses.replace(OPTIMIZER, accumulation_steps=4)
    )
    assert_close(history_whole, history_parts)
    assert_close(whole.params, parts.params)


def test_frozen_parameters_stay_and_have_no_optimizer_memory():
    optimizer = dataclasses.replace(OPTIMIZER, freeze=("embed/.*",), frozen_dtype="bfloat16")
    state, _ = run(2, optimizer=optimizer)
    initial = initial_params()
    np.testing.assert_array_equal(state.params["embed"]["kernel"], initial["embed"]["kernel"].astype(jnp.bfloat16))
    assert not np.array_equal(state.params["head"]["kernel"], initial["head"]["kernel"])
    assert not [name for name in sharding.flatten(state.opt_state) if "embed" in name]
    # two moments of the trained part and two int32 counters, nothing else
    assert state_lib.num_bytes(state.opt_state) == 2 * state_lib.num_bytes(state.trained) + 8


def test_moving_average_is_absent_when_off_and_follows_when_on():
    plain, _ = run()
    assert plain.ema is None
    averaged, _ = run(optimizer=dataclasses.replace(OPTIMIZER, ema_decay=0.75))
    assert_close(averaged.params, plain.params)
    # Three updates of 0.75 x old + 0.25 x new end closer to the start than the parameters do.
    moved = jax.tree.map(lambda a, b: float(jnp.abs(a - b).sum()), averaged.ema, initial_params())
    moved_plain = jax.tree.map(lambda a, b: float(jnp.abs(a - b).sum()), plain.params, initial_params())
    assert all(0 < x < y for x, y in zip(jax.tree.leaves(moved), jax.tree.leaves(moved_plain), strict=True))
    assert averaged.inference_params["head"]["kernel"] is averaged.ema["head"]["kernel"]


def test_randomness_is_a_function_of_seed_and_step():
    _, noisy = run(noise=0.1)
    _, again = run.__wrapped__(noise=0.1)
    _, clean = run()
    assert noisy == again
    assert all(a["loss"] != b["loss"] for a, b in zip(noisy, clean, strict=True))


def test_the_loss_falls_and_another_shape_is_refused_instead_of_compiled():
    optimizer = dataclasses.replace(OPTIMIZER, learning_rate=0.02, weight_decay=0.0)
    factory, step, placed = build(optimizer, ONE, 1, 0.0)
    state = factory.initialize(0)
    losses = []
    for i in range(20):
        state, scalars = step(state, jax.device_put(toy.batch(i), placed))
        losses.append(float(scalars["loss"]))
    assert losses[-1] < 0.5 * losses[0]
    with pytest.raises(TypeError):
        step(state, toy.batch(0, rows=8))
