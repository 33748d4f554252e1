"""The report: its keys, its arithmetic, its words."""

import dataclasses
import json

import jax
import pytest

from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.config import MeshConfig
from pokevla_jax.config import OptimizerConfig
from pokevla_jax.models import presets
from pokevla_jax.plan import calibrate
from pokevla_jax.plan import compile as compiling
from pokevla_jax.plan import report
from pokevla_jax.plan import topologies
from pokevla_jax.training.optimizer import make_optimizer
from pokevla_jax.training.state import StateFactory
from tests.plan import programs

V5E = topologies.parse("v5e:2x4")
CONFIG = Config(
    model=presets.tiny(),
    mesh=MeshConfig(data=1, fsdp=-1),
    optimizer=OptimizerConfig(ema_decay=0.99, freeze=("vision/.*",)),
    batch_size=32,
    num_steps=1000,
)


@pytest.fixture(scope="module")
def objective():
    return compiling.what_runs(CONFIG)[0]


@pytest.fixture(scope="module")
def compiled(objective):
    """The step of eight CPU devices' state, with a program of 24 x 1,500 cycles."""
    mesh = sharding.make_mesh(CONFIG.mesh)
    optimizer = make_optimizer(CONFIG.optimizer, CONFIG.num_steps)
    state = StateFactory(objective, CONFIG.optimizer, optimizer, mesh).abstract
    return compiling.CompiledStep(
        text=programs.SCAN,
        memory=compiling.Memory(1.0, 2.0, 0.5, 0.25, 4.0, 15.75),
        coordinates=tuple((x, y, 0) for x in range(2) for y in range(4)),
        state=state,
        seconds=1.0,
    )


@pytest.fixture(scope="module")
def plan(objective, compiled):
    return report.make_plan(CONFIG, objective, V5E, compiled)


def test_the_report_has_exactly_its_keys_and_is_json(plan):
    assert list(json.loads(json.dumps(plan.report))) == list(report.KEYS)
    refused = report.make_refusal(CONFIG, compiling.what_runs(CONFIG)[0], V5E, compiling.OutOfMemoryError(29.3, 15.75))
    assert list(refused.report) == list(report.KEYS)
    assert refused.report["fits"] is False
    assert refused.report["hbm_gib"]["total"] == 29.3


def test_time_speed_and_utilisation_follow_from_the_cycles(plan):
    seconds = 24 * 1500 / 1.5e9
    found = plan.report
    assert found["predicted_step_ms"] == pytest.approx(1e3 * seconds, abs=1e-3)
    assert found["samples_per_second"] == pytest.approx(32 / seconds, rel=1e-3)
    assert found["days"] == pytest.approx(1000 * seconds / 86400, abs=1e-3)
    student = found["model_tflops_per_step"] * 1e12
    assert found["predicted_mfu"] == pytest.approx(student / (8 * 197e12 * seconds), rel=1e-2)
    assert found["hbm_gib"]["total"] == 7.75


@pytest.mark.parametrize("source", ["inside", "precomputed"])
def test_teachers_cost_time_inside_and_bytes_precomputed(compiled, source):
    model = presets.pokevla()
    given = dataclasses.replace(
        model,
        segmentation=dataclasses.replace(model.segmentation, source=source),
        geometry=dataclasses.replace(model.geometry, source=source),
    )
    config = dataclasses.replace(CONFIG, model=given)
    found = report.make_plan(config, compiling.what_runs(config)[0], V5E, compiled)
    sam, vggt = found.report["teachers"]
    inside = source == "inside"
    # Two views of 64 x 64 x 256 and of 16 x 16 x 2,048 half-precision numbers, 32 x 1,000 samples.
    assert (sam["mib_per_sample"], vggt["mib_per_sample"]) == (4.0, 2.0)
    assert sam["tib_per_run"] == pytest.approx(32_000 * 4 / 2**20, abs=1e-4)
    assert (sam["tflops_per_step"] > 1, vggt["tflops_per_step"] > 1) == (inside, inside)
    total = sam["tflops_per_step"] + vggt["tflops_per_step"]
    assert total == pytest.approx(found.report["teacher_tflops_per_step"], rel=1e-3)
    text = report.as_text(found)
    assert ("teacher sam     inside: " in text, "teacher vggt    precomputed: 2.00 MiB" in text) == (inside, not inside)


def test_frozen_parameters_are_counted_apart(plan, objective):
    sizes = {name: leaf.size for name, leaf in sharding.flatten(objective.abstract_params).items()}
    assert plan.report["params_total"] == sum(sizes.values())
    trained = sum(size for name, size in sizes.items() if not name.startswith("vision/"))
    assert plan.report["params_trainable"] <= trained
    assert plan.report["params_trainable"] > 0.9 * trained


def test_memory_by_class_is_that_of_one_device(compiled):
    """Adam's two moments take twice the trained parameters, the average once; frozen ones neither."""
    trained = compiling.bytes_per_device(compiled.state.trained)
    assert compiling.bytes_per_device(compiled.state.ema) == trained
    assert compiling.bytes_per_device(compiled.state.opt_state) == pytest.approx(2 * trained, rel=1e-3)
    whole = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(compiled.state.trained))
    assert trained < 0.5 * whole


def test_the_largest_whole_array_is_found(compiled):
    before = compiling.largest_replicated(compiled.state)
    mesh = jax.tree.leaves(compiled.state)[0].sharding.mesh
    whole = jax.ShapeDtypeStruct((1024, 1024), "float32", sharding=sharding.replicated(mesh))
    state = dataclasses.replace(compiled.state, frozen={"table": whole})
    assert before < 4.0 == compiling.largest_replicated(state)


def test_the_text_says_what_is_predicted_and_what_is_left_out(plan):
    text = report.as_text(plan, top=3)
    assert "This is a prediction" in text
    assert "MFU = student matmul FLOPs" in text
    assert "language/mlp/dot_general" in text
    assert "backward" in text
    assert "Pallas kernels have no estimate" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "jit(train_step)/jvp(vision)/dinov2/while/body/closed_call/attention/exp",
            ("vision/dinov2/attention/exp", "forward"),
        ),
        (
            "jit(train_step)/transpose(jvp(language))/while/body/closed_call/checkpoint/mlp/mul",
            ("language/mlp/mul", "backward"),
        ),
        (
            "jit(train_step)/transpose(jvp(language))/while/body/closed_call/checkpoint/rematted_computation/mlp/dot",
            ("language/mlp/dot", "recompute"),
        ),
        ("jit(train_step)/jvp(jit(gelu))/erf", ("gelu/erf", "forward")),
        ("jit(train_step)/optimizer/mul", ("optimizer/mul", "")),
        ("(all-reduce)", ("(all-reduce)", "")),
    ],
)
def test_sources_are_named_by_scope_and_pass(name, expected):
    assert report.source(name) == expected


@pytest.mark.parametrize(
    ("message", "needed", "limit"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required by the program (29.30G) exceeds "
            "available HBM (15.75G)",
            29.3,
            15.75,
        ),
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. "
            "Used 816.5M of 15.75G hbm.",
            816.5 / 1024,
            15.75,
        ),
    ],
)
def test_the_compilers_refusal_is_read(message, needed, limit):
    error = compiling.read_out_of_memory(message, V5E)
    assert (error.needed, error.limit) == (pytest.approx(needed), pytest.approx(limit))
    assert "\n" not in str(error)
    assert compiling.read_out_of_memory("INTERNAL: something else", V5E) is None


@pytest.mark.parametrize("reference", calibrate.REFERENCES.values(), ids=lambda r: r.name)
def test_references_have_the_published_size(reference):
    """6 FLOPs per weight and token: the sizes in the names, and what MaxText counts for a step."""
    weights = reference.flops_per_step / (6 * reference.per_chip_batch * reference.length)
    published = {"MaxText 16B on v5e-256": 15.8e9, "MaxText 32B on v5p-128": 31.6e9, "Llama 3.1 8B on v6e-8": 7.5e9}
    assert published[reference.name] < weights < 1.35 * published[reference.name]
    assert topologies.parse(reference.topology).num_chips in (8, 64, 256)
