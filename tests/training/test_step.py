"""The train step: sharding, accumulation, freezing, moving average, randomness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import toy
from pokevla_jax import sharding
from pokevla_jax.config import MeshConfig
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.training import state as state_lib
from pokevla_jax.training import step as step_lib
from pokevla_jax.training.optimizer import make_optimizer

MESH_8 = MeshConfig(replica=1, data=2, fsdp=2, tensor=2)
OPTIMIZER = OptimizerConfig(learning_rate=0.01, warmup_steps=2, weight_decay=0.1)


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    """The fields of ``Config`` that the step reads."""

    optimizer: OptimizerConfig
    num_steps: int = 20
    seed: int = 3


def run(num_steps=3, *, mesh=MeshConfig(), devices=1, noise=0.0, optimizer=OPTIMIZER, rows=toy.BATCH):
    """The final state and the scalars of every step."""
    objective = toy.objective(noise)
    config = ToyConfig(optimizer)
    mesh = sharding.make_mesh(mesh, jax.devices()[:devices])
    tx = make_optimizer(optimizer, config.num_steps)
    abstract = state_lib.abstract_state(objective, optimizer, tx, mesh)
    spec = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in toy.batch(0, rows).items()}
    step = step_lib.make_train_step(objective, config, tx, mesh, abstract, step_lib.abstract_batch(spec, mesh))
    state = state_lib.initialize(objective, optimizer, tx, abstract, config.seed)
    history = []
    for i in range(num_steps):
        state, scalars = step(state, jax.device_put(toy.batch(i, rows), sharding.batch_sharding(mesh)))
        history.append(jax.device_get(scalars))
    return state, history


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


@pytest.mark.parametrize(("mesh", "devices"), [(MeshConfig(), 1), (MESH_8, 8)])
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
    initial = toy.initialize(jax.random.key(3))
    np.testing.assert_array_equal(state.params["embed"]["kernel"], initial["embed"]["kernel"].astype(jnp.bfloat16))
    assert not np.array_equal(state.params["head"]["kernel"], initial["head"]["kernel"])
    assert not [name for name in sharding.flatten(state.opt_state) if "embed" in name]
    # two moments of the trained part and two int32 counters, nothing else
    assert state_lib.memory(state.opt_state) == 2 * state_lib.memory(state.trained) + 8


def test_moving_average_is_absent_when_off_and_follows_when_on():
    assert run(1)[0].ema is None
    first, _ = run(1)
    averaged, _ = run(1, optimizer=dataclasses.replace(OPTIMIZER, ema_decay=0.75))
    expected = jax.tree.map(lambda old, new: 0.75 * old + 0.25 * new, toy.initialize(jax.random.key(3)), first.params)
    assert_close(averaged.ema, expected)
    assert averaged.inference_params["head"]["kernel"] is averaged.ema["head"]["kernel"]


def test_randomness_is_a_function_of_seed_and_step():
    _, history = run(2, noise=0.5)
    _, again = run(2, noise=0.5)
    _, clean = run(2)
    assert history == again
    assert history[0]["loss"] != clean[0]["loss"]
    assert history[1]["loss"] != clean[1]["loss"]


def test_the_loss_falls_on_one_repeated_problem():
    _, history = run(20, optimizer=dataclasses.replace(OPTIMIZER, learning_rate=0.02, weight_decay=0.0))
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]


def test_a_batch_of_another_shape_is_refused_instead_of_compiled():
    objective, config = toy.objective(), ToyConfig(OPTIMIZER)
    mesh = sharding.make_mesh(MeshConfig(), jax.devices()[:1])
    tx = make_optimizer(OPTIMIZER, 20)
    abstract = state_lib.abstract_state(objective, OPTIMIZER, tx, mesh)
    spec = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in toy.batch(0).items()}
    step = step_lib.make_train_step(objective, config, tx, mesh, abstract, step_lib.abstract_batch(spec, mesh))
    state = state_lib.initialize(objective, OPTIMIZER, tx, abstract, 0)
    with pytest.raises(TypeError):
        step(state, toy.batch(0, rows=8))
