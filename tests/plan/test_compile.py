"""Compiling for TPUs that are not there (marker tpu_compiler): fit, refusal, and the collectives of the sharding."""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec

from pokevla_jax import sharding
from pokevla_jax.config import Config
from pokevla_jax.config import MeshConfig
from pokevla_jax.models import presets
from pokevla_jax.plan import compile as compiling
from pokevla_jax.plan import cost
from pokevla_jax.plan import hlo
from pokevla_jax.plan import report
from pokevla_jax.plan import topologies

pytestmark = [pytest.mark.tpu_compiler, pytest.mark.timeout(1800)]


def small(topology, *, per_chip=2):
    """The small preset, ZeRO-3 over the whole slice; width 256, so that 256 chips can cut it."""
    model = presets.tiny()
    return Config(model=model, mesh=MeshConfig(data=1, fsdp=-1), batch_size=per_chip * topology.num_chips)


def compile_small(name):
    topology = topologies.parse(name)
    config = small(topology)
    objective, spec = compiling.what_runs(config)
    return config, objective, topology, compiling.compile_step(objective, config, spec, topology)


@pytest.fixture(scope="module")
def on_16():
    return compile_small("v5e:4x4")


@pytest.mark.parametrize("name", ["v4:2x2x1", "v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_a_large_matrix_product_runs_at_nearly_the_peak(name):
    """The estimate's unit is the clock's tick: at another clock a plain product would exceed the peak or miss it."""
    topology = topologies.parse(name)
    devices = topology.devices()[:1]
    mesh = jax.make_mesh((1,), ("x",), devices=devices)
    x = jax.ShapeDtypeStruct((8192, 8192), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec()))
    text = jax.jit(lambda a, b: a @ b).lower(x, x).compile().as_text()
    tally = cost.analyze(hlo.parse(text), topology, [(0, 0, 0)])
    utilisation = 2 * 8192**3 / tally.seconds / topology.chip.peak_flops
    assert 0.65 < utilisation < 1.02


def test_scan_trip_counts_of_a_real_program():
    topology = topologies.parse("v5e:2x2")
    mesh = jax.make_mesh((1,), ("x",), devices=topology.devices()[:1])
    place = NamedSharding(mesh, PartitionSpec())

    def layers(x, w):
        return jax.lax.scan(lambda c, m: (jnp.tanh(c @ m), None), x, w)[0]

    def seconds(depth):
        x = jax.ShapeDtypeStruct((1024, 1024), jnp.bfloat16, sharding=place)
        w = jax.ShapeDtypeStruct((depth, 1024, 1024), jnp.bfloat16, sharding=place)
        text = jax.jit(layers).lower(x, w).compile().as_text()
        return cost.analyze(hlo.parse(text), topology, [(0, 0, 0)]).seconds

    assert seconds(40) == pytest.approx(4 * seconds(10), rel=0.1)


def test_the_small_preset_fits_and_its_state_is_cut(on_16):
    config, objective, topology, compiled = on_16
    found = report.make_plan(config, objective, topology, compiled).report
    assert found["fits"]
    assert 0 < found["hbm_gib"]["total"] < 2
    assert found["largest_replicated_mib"] < 4
    assert found["predicted_step_ms"] >= found["predicted_compute_ms"] > 0


def test_census_of_collectives_of_the_small_preset(on_16):
    """Every cut parameter is gathered for the forward and the backward pass, and its gradient is reduced once."""
    _, objective, topology, compiled = on_16
    tally = cost.analyze(hlo.parse(compiled.text), topology, compiled.coordinates)
    cut = [
        leaf
        for leaf in jax.tree.leaves(compiled.state.trained)
        if np.prod(leaf.sharding.shard_shape(leaf.shape)) < leaf.size
    ]
    size = sum(leaf.size for leaf in cut) * 4 * 15 / 16  # float32 in this preset
    moved = tally.bytes
    gathered = moved["all-gather"] + moved["collective-permute"] + moved["all-reduce"] / 2
    assert 1.0 * size < gathered + moved["reduce-scatter"] < 5 * size, (dict(tally.counts), dict(moved), size)


def test_bytes_and_memory_from_16_to_256_chips(on_16):
    """State per chip falls with the chips as far as the widths can be cut; bytes per chip stay what they were."""
    *_, compiled = on_16
    _, _, topology, larger = compile_small("v5e:16x16")
    before = cost.analyze(hlo.parse(compiled.text), on_16[2], compiled.coordinates)
    after = cost.analyze(hlo.parse(larger.text), topology, larger.coordinates)
    assert sum(after.bytes.values()) < 1.5 * sum(before.bytes.values())
    assert larger.memory.params + larger.memory.optimizer < compiled.memory.params + compiled.memory.optimizer


def test_what_does_not_fit_is_refused_with_its_size():
    topology = topologies.parse("v5e:2x2")
    config = small(topology, per_chip=2**15)
    objective, spec = compiling.what_runs(config)
    with pytest.raises(compiling.OutOfMemoryError, match=r"needs \d+\.\d+ GiB") as error:
        compiling.compile_step(objective, config, spec, topology)
    assert error.value.needed > error.value.limit == topology.chip.hbm_gib


def test_the_command_prints_json_alone(tmp_path):
    command = [sys.executable, "-m", "pokevla_jax.cli.plan", "--config=configs/libero_object_quickstart.py"]
    command += ["--topology=v5e:2x2", "--config.batch_size=8", "--json", f"--out={tmp_path}"]
    environment = {key: value for key, value in os.environ.items() if key not in ("XLA_FLAGS", "JAX_PLATFORMS")}
    result = subprocess.run(command, capture_output=True, text=True, timeout=1500, env=environment)
    assert result.returncode == 0, result.stderr
    assert list(json.loads(result.stdout)) == list(report.KEYS)
    assert json.loads((tmp_path / "plan.json").read_text())["fits"] is True
    assert hlo.parse((tmp_path / "step.hlo.txt").read_text()).entry


def test_the_mesh_takes_the_slice():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=-1), topologies.parse("v5e:4x4").devices())
    assert mesh.shape["fsdp"] == 16
    assert len(set(compiling.device_coordinates(mesh))) == 16
