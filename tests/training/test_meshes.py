"""One float32 step is the same on every mesh: loss and gradients, for both stages, without needless data movement."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.config import DataConfig
from pokevla_jax.config import MeshConfig
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.schema import fake_batch
from pokevla_jax.training import stages
from pokevla_jax.training import state as state_lib
from pokevla_jax.training import step as step_lib
from tests.models.conftest import micro_config

BATCH = 8
SHAPES = [shape for shape in itertools.product((1, 2, 4, 8), repeat=4) if 8 % np.prod(shape) == 0]
FAST = [(1, 2, 2, 2), (1, 1, 8, 1)]


def make_config(stage, **optimizer):
    """Heads and widths that 8 divides in part only: what does not divide stays whole."""
    model = micro_config()
    language = dataclasses.replace(model.language, num_heads=4, num_kv_heads=2)
    return Config(
        model=dataclasses.replace(model, language=language, logits_chunk=32),
        stage=stage,
        data=DataConfig(pack_length=40, pack_images=2),
        optimizer=OptimizerConfig(**optimizer),
        batch_size=BATCH,
    )


def recording():
    """An optimizer that changes nothing and keeps the gradients as its state."""
    return optax.GradientTransformation(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        update=lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
    )


def gradients(config, shape, accumulation=1):
    """Loss and gradients of the first step on a mesh of this shape."""
    config = dataclasses.replace(
        config, optimizer=dataclasses.replace(config.optimizer, accumulation_steps=accumulation)
    )
    mesh = MeshConfig(**dict(zip(sharding.AXES, shape, strict=True)))
    mesh = sharding.make_mesh(mesh, jax.devices()[: np.prod(shape)])
    objective, tx = stages.make_objective(config), recording()
    factory = state_lib.StateFactory(objective, config.optimizer, tx, mesh)
    spec = step_lib.abstract_batch(batch_spec(config, BATCH), mesh)
    step = step_lib.make_train_step(objective, config, tx, mesh, factory.abstract, spec)
    batch = jax.device_put(uneven_batch(config), sharding.batch_sharding(mesh))
    state, scalars = step(factory.initialize(0), batch)
    return jax.device_get((scalars["loss"], sharding.flatten(state.opt_state)))


def uneven_batch(config):
    """Rows with different numbers of valid targets: a mean of means would be seen."""
    batch = fake_batch(config, BATCH)
    if config.stage == "vla":
        batch["action_mask"][3:, 5:] = False
        batch["mask_valid"][:5, 1] = False
        batch["token_mask"][::2, 3:] = False
        batch["points_valid"][1, 0] = False
    return batch


def assert_same(actual, expected):
    (loss, grads), (expected_loss, expected_grads) = actual, expected
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    overall = rms(np.concatenate([g.reshape(-1) for g in expected_grads.values()]))
    for name, g in grads.items():
        # Some gradients are zero but for rounding (a key's bias shifts all logits alike).
        tolerance = 1e-5 * max(rms(expected_grads[name]), overall)
        assert np.max(np.abs(g - expected_grads[name])) < tolerance, name


def rms(x):
    return np.sqrt(np.mean(np.square(x)))


@pytest.fixture(scope="module")
def one_device():
    found = {}

    def get(stage):
        if stage not in found:
            found[stage] = gradients(make_config(stage), (1, 1, 1, 1))
        return found[stage]

    return get


@pytest.fixture
def compiled_anew():
    """Without the cache of compiled programs: what comes from it was partitioned without a warning to be seen."""
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_enable_compilation_cache", True)
    compilation_cache.reset_cache()


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vla", "vlm"])
@pytest.mark.parametrize("shape", [shape for shape in SHAPES if np.prod(shape) > 1], ids=str)
def test_a_step_is_the_same_on_every_mesh(stage, shape, one_device, capfd, compiled_anew):
    expected = one_device(stage)
    capfd.readouterr()
    assert_same(gradients(make_config(stage), shape), expected)
    # The partitioner's confession that it makes an array whole on every device because it knows no better way.
    assert "Involuntary full rematerialization" not in capfd.readouterr().err


@pytest.mark.parametrize("shape", FAST, ids=str)
def test_a_pretraining_step_is_the_same_on_a_mesh(shape, one_device, capfd, compiled_anew):
    test_a_step_is_the_same_on_every_mesh("vlm", shape, one_device, capfd, None)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["vla", "vlm"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (1, 2, 1, 1)], ids=str)
def test_four_micro_batches_are_one_batch(stage, shape, one_device):
    assert_same(gradients(make_config(stage), shape, accumulation=4), one_device(stage))


@pytest.mark.slow
@pytest.mark.parametrize("shape", FAST, ids=str)
def test_adapters_train_the_same_on_a_mesh(shape):
    config = make_config("vlm", lora_rank=2, freeze=("vision/.*", "language/.*"))
    assert_same(gradients(config, shape), gradients(config, (1, 1, 1, 1)))
