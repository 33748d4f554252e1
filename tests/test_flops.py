"""The analytic FLOPs against the products that JAX traces, counted equation by equation with their loops."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import pytest

from pokevla_jax import config as config_lib
from pokevla_jax import flops
from pokevla_jax.config import Config
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.models import presets
from pokevla_jax.models import stacking
from pokevla_jax.models import vggt
from pokevla_jax.sharding import flatten
from pokevla_jax.training import optimizer
from pokevla_jax.training import stage2
from pokevla_jax.training import stages


def traced(function, *arguments):
    """FLOPs of every matrix product and convolution that ``function`` traces to; loops count by their length."""
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr):
    total = 0.0
    for equation in jaxpr.eqns:
        shapes = [getattr(x.aval, "shape", ()) for x in (*equation.invars, *equation.outvars)]
        if equation.primitive.name == "dot_general" and min(len(shapes[0]), len(shapes[1])) > 1:
            # Products with a vector of ones are this project's way to sum a bias gradient: no arithmetic of the model.
            (contracted, _), _ = equation.params["dimension_numbers"]
            total += 2.0 * math.prod(shapes[-1]) * math.prod(shapes[0][i] for i in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.params["dimension_numbers"].rhs_spec
            total += 2.0 * math.prod(shapes[-1]) * math.prod(shapes[1]) / shapes[1][kernel[0]]
        inner = sum(_count(sub) for sub in _inner(equation.params))
        total += inner * (equation.params["length"] if equation.primitive.name == "scan" else 1)
    return total


def _inner(params):
    for value in params.values():
        for item in value if isinstance(value, tuple | list) else [value]:
            if hasattr(item, "eqns"):
                yield item
            elif hasattr(item, "jaxpr"):
                yield item.jaxpr


def experiment(model, **optimizer_changes):
    config = Config(model=dataclasses.replace(model, remat="none"))
    return dataclasses.replace(config, optimizer=dataclasses.replace(config.optimizer, **optimizer_changes))


def traced_step(config):
    """Traced FLOPs of loss and gradient for one sample, the parameters that exist, and the frozen ones."""
    objective = stages.make_objective(config)
    names = flatten(objective.abstract_params)
    frozen = optimizer.frozen_names(objective.trainable, config.optimizer.freeze)
    trained, rest = optimizer.split(objective.abstract_params, frozen)
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch_spec(config, 1).items()}

    def loss(trained, rest, batch):
        params = optimizer.merge(trained, rest)
        return objective.loss(params, batch, None, objective.count(batch))[0]

    return traced(jax.grad(loss), trained, rest, batch), names, frozen


FREEZING = {
    "everything trained": (),
    "frozen towers": ("vision/dinov2/.*", "vision/siglip/.*"),
    "frozen vision": ("vision/.*",),
    "frozen vision and language": ("vision/.*", "language/.*"),
    "only the head": ("vision/.*", "language/.*", "seg_token", "action_queries"),
}


@pytest.mark.parametrize("freeze", FREEZING.values(), ids=FREEZING)
def test_training_step_counts_what_jax_traces(freeze):
    config = experiment(presets.tiny(), freeze=freeze)
    expected, names, frozen = traced_step(config)
    counted = flops.train_flops(config, names, frozen)
    # XLA is asked for the whole square of causal attention, of which the convention counts half.
    half = flops.forward_flops(config)["language"].mixing
    half *= 3 if counted.backward["language"] else 1
    assert counted.student + half == pytest.approx(expected, rel=0.02)


def test_adapters_let_gradients_pass_frozen_weights():
    config = experiment(presets.tiny(), lora_rank=2)
    expected, names, frozen = traced_step(config)
    # Each adapter: a product with its input forward, and one by its weights and one by its input backward.
    positions = {"vision/dinov2": 2 * 69, "vision/siglip": 2 * 64, "vision/projector": 2 * 64, "language": 161}
    sizes = {name: leaf.size for name, leaf in names.items() if "/lora_" in name}
    own = sum(
        6 * size * count for name, size in sizes.items() for part, count in positions.items() if name.startswith(part)
    )
    half = 3 * flops.forward_flops(config)["language"].mixing
    assert sizes
    assert flops.train_flops(config, names, frozen).student + half + own == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("freeze", [(), ("vision/dinov2/.*", "vision/siglip/.*")], ids=["trained", "frozen towers"])
def test_a_packed_row_of_stage_1_counts_what_jax_traces(freeze):
    config = dataclasses.replace(experiment(presets.tiny(), freeze=freeze), stage="vlm")
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, pack_length=192, pack_images=2))
    expected, names, frozen = traced_step(config)
    half = 3 * flops.forward_flops(config)["language"].mixing
    assert flops.train_flops(config, names, frozen).student + half == pytest.approx(expected, rel=0.02)


VARIANTS = {
    "original block": {"block": "original", "gate": "none"},
    "outputs": {"concat": "outputs"},
    "without seg": {"inject_seg": False},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_action_head_variants(changes):
    model = presets.tiny()
    model = dataclasses.replace(model, action_head=dataclasses.replace(model.action_head, **changes))
    config = experiment(model)
    expected, names, frozen = traced_step(config)
    half = 3 * flops.forward_flops(config)["language"].mixing
    assert flops.train_flops(config, names, frozen).student + half == pytest.approx(expected, rel=0.02)


def test_full_size_forward_pass_counts_what_jax_traces(monkeypatch):
    # Attention in chunks pads the queries to whole ones, which is no arithmetic of the model.
    monkeypatch.setattr(vggt, "QUERY_CHUNK", 1 << 20)
    config = experiment(presets.pokevla())
    batch = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch_spec(config, 1).items()}
    params = stacking.abstract_params(config.model)
    expected = traced(lambda p, b: stacking.bind(config.model, p)(b, train=True), params, batch)
    parts = flops.forward_flops(config)
    total = sum(part.forward for part in parts.values()) + parts["language"].mixing
    # SAM's relative positions ride along in the product of queries and keys, at no arithmetic of the model: 28 more
    # channels in 25 windows of 14 x 14, twice in each of four groups, and 128 in the whole map of 64 x 64.
    total += 2 * 4 * 768 / 64 * 2 * (2 * 25 * 196**2 * 28 + 4096**2 * 128)
    assert total == pytest.approx(expected, rel=0.01)
    # A ViT's forward pass is about 2 FLOPs per weight and token: an independent order of magnitude.
    assert parts["vision/dinov2"].weights == pytest.approx(2 * 2 * 261 * 290e6, rel=0.03)


def test_frozen_teachers_count_forward_only():
    config = experiment(presets.pokevla())
    objective = stage2.make_objective(config)
    frozen = optimizer.frozen_names(objective.trainable, ())
    counted = flops.train_flops(config, flatten(objective.abstract_params), frozen)
    assert counted.backward["teacher/sam"] == counted.backward["teacher/vggt"] == 0
    assert counted.teachers == counted.forward["teacher/sam"] + counted.forward["teacher/vggt"] > 0
    assert counted.student == pytest.approx(3 * (sum(counted.forward.values()) - counted.teachers), rel=0.01)


def test_stage_1_counts_one_packed_row():
    config = dataclasses.replace(experiment(presets.pokevla()), stage="vlm")
    parts = flops.forward_flops(config)
    assert set(parts) == {"vision/dinov2", "vision/siglip", "vision/projector", "language", "lm_head"}
    tokens = jax.ShapeDtypeStruct((2048, 896), jnp.float32)
    table = jax.ShapeDtypeStruct((896, 151_936), jnp.float32)
    assert parts["lm_head"].forward == traced(jnp.matmul, tokens, table)
    # Weights of Qwen2.5-0.5B without its embedding: 0.36 G, used once per position.
    assert parts["language"].weights == pytest.approx(2 * 2048 * 0.3578e9, rel=0.01)


def test_mfu_and_peaks():
    assert flops.peak_flops("TPU v5 lite") == 197e12
    assert flops.peak_flops("TPU v5") == flops.peak_flops("TPU v5p") == 459e12
    assert flops.peak_flops("cpu") is None
    assert flops.mfu(1e12, 98.5, 1, 197e12) == 0.5
    assert config_lib.to_dict(Config(model=presets.tiny()))["stage"] == "vla"
