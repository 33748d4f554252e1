"""Two real processes of four devices each: one signal stops or kills them, and nothing is lost.

Parameters are compared with those of an undisturbed run of the same processes, bit by bit; on another mesh, where sums
are taken in another order, to 1e-5.
"""

import itertools
import json
import shutil
import signal

import jax
import numpy as np
import pytest

from pokevla_jax import checkpoints
from pokevla_jax import sharding
from pokevla_jax.config import ConfigError
from pokevla_jax.sharding import flatten
from pokevla_jax.training import distributed
from pokevla_jax.training import loop
from pokevla_jax.training import metrics
from pokevla_jax.training.goodput import read_attempts
from pokevla_jax.training.preemption import PREEMPTED
from tests.training import processes
from tests.training import toy

STEPS = 12
# Across the two processes: gradients are summed over ``data``, parameters gathered over ``fsdp``.
ACROSS = {"mesh__data": 2, "mesh__fsdp": 4}
# On the eight devices of the test's own process.
ALONE = {"mesh__data": 4, "mesh__fsdp": 2}
ALL_IDS = [[step, toy.batch(step - 1)["x"][:, 0].tolist()] for step in range(1, STEPS + 1)]


def run(workdir, **more):
    return {"workdir": str(workdir), "changes": ACROSS, "ids": f"{workdir}.ids"} | more


def launch(runs, count=2):
    started = processes.start(["-m", "tests.training.worker", json.dumps(runs)], count, 8 // count)
    return processes.finish(started)


def final(workdir):
    """All arrays of the last checkpoint, the optimizer's too, and the data position."""
    folder = workdir / checkpoints.CHECKPOINTS / str(STEPS)
    config, params, _ = checkpoints.load_policy_checkpoint(workdir)
    state = json.loads((folder / "data" / "metadata").read_text())
    return config, flatten(jax.tree.map(np.asarray, params)), state["position"]


def assert_same(a, b, tolerance=None):
    (_, params, position), (_, others, other_position) = final(a), final(b)
    assert position == other_position
    assert params.keys() == others.keys()
    for name, value in params.items():
        if tolerance is None:
            np.testing.assert_array_equal(value, others[name], err_msg=name)
        else:
            np.testing.assert_allclose(value, others[name], rtol=0, atol=tolerance, err_msg=name)


def rows_by_step(path, count):
    """What all processes together saw last at each step."""
    seen = [{}, {}]
    for index in range(count):
        for line in path.with_name(f"{path.name}-{index}").read_text().splitlines():
            step, rows = json.loads(line)
            seen[index][step] = rows
    return [[step, list(itertools.chain(*(seen[i][step] for i in range(count))))] for step in sorted(seen[0])]


@pytest.fixture(scope="module")
def drill(tmp_path_factory):
    """An undisturbed run, one stopped by SIGTERM at process 1, and that one started again."""
    folder = tmp_path_factory.mktemp("drill")
    step = int(np.random.default_rng().integers(3, 9))  # any step will do; a failure names it
    first = launch([run(folder / "whole"), run(folder / "stopped", signal=[1, "SIGTERM", step])])
    assert (folder / "stopped").exists(), first
    shutil.copytree(folder / "stopped", folder / "elsewhere")
    second = launch([run(folder / "stopped")])
    return folder, step, first, second


@pytest.mark.multiprocess
def test_sigterm_at_one_process_stops_all_and_loses_nothing(drill):
    folder, step, (codes, outputs), (resumed, more) = drill
    assert codes == [PREEMPTED, PREEMPTED], outputs
    saved = checkpoints.all_steps(folder / "elsewhere" / "checkpoints")[-1]
    assert step <= saved < STEPS, f"SIGTERM in step {step}"
    assert f"SIGTERM: saved step {saved}" in outputs[0]
    assert "SIGTERM: saved" not in outputs[1], "only the first process speaks"
    assert resumed == [0, 0], more
    assert f"continuing after step {saved} of {STEPS}" in more[0]
    assert_same(folder / "stopped", folder / "whole")


@pytest.mark.multiprocess
def test_every_step_sees_its_samples_once_and_logs_one_line(drill):
    folder, *_ = drill
    assert rows_by_step(folder / "whole.ids", 2) == ALL_IDS
    assert rows_by_step(folder / "stopped.ids", 2) == ALL_IDS
    lines = [[(x["step"], x["split"]) for x in metrics.read_metrics(folder / name)] for name in ("whole", "stopped")]
    assert lines[0] == lines[1]
    assert len(lines[0]) == len(set(lines[0])) == STEPS // 2 + STEPS // 4
    saved = checkpoints.all_steps(folder / "elsewhere" / "checkpoints")[-1]
    assert [attempt["steps"] for attempt in read_attempts(folder / "stopped")] == [saved, STEPS - saved]


@pytest.mark.multiprocess
def test_the_run_continues_on_another_number_of_processes_and_another_mesh(drill):
    folder, *_ = drill
    seen = []

    class Recorded(toy.Batches):
        def __next__(self):
            batch = super().__next__()
            seen.append([self.step, batch["x"][:, 0].tolist()])
            return batch

    loop.train(toy.config(**ALONE), folder / "elsewhere", toy.objective(0.1), toy.data(Recorded))
    assert seen == ALL_IDS[seen[0][0] - 1 :]
    assert_same(folder / "elsewhere", folder / "whole", tolerance=1e-5)


@pytest.mark.multiprocess
@pytest.mark.slow
def test_sigkill_at_a_random_step_loses_nothing(tmp_path, drill):
    folder, *_ = drill
    rng = np.random.default_rng()
    for name, process in (("first", 0), ("second", 1)):
        step = int(rng.integers(2, STEPS))
        codes, outputs = launch([run(tmp_path / name, signal=[process, "SIGKILL", step])])
        assert codes[process] == -signal.SIGKILL, outputs
        assert codes[1 - process] != 0, outputs
        codes, outputs = launch([run(tmp_path / name)])
        assert codes == [0, 0], outputs
        assert_same(tmp_path / name, folder / "whole")
        assert rows_by_step(tmp_path / f"{name}.ids", 2) == ALL_IDS, f"killed in step {step}"


@pytest.mark.multiprocess
@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_skipped_by_both(tmp_path, drill):
    folder, *_ = drill
    shutil.copytree(folder / "whole", tmp_path / "run")
    codes, outputs = launch([run(tmp_path / "run", unreadable=[1, STEPS])])
    assert codes == [0, 0], outputs
    message = f"step {STEPS} is incomplete or damaged and is skipped"
    assert f"{message} (another host could not read it)" in outputs[0]
    assert f"{message} (OSError: input/output error)" in outputs[1]
    assert_same(tmp_path / "run", folder / "whole")


@pytest.mark.multiprocess
@pytest.mark.slow
def test_hosts_with_another_configuration_or_other_sources_stop_at_once(tmp_path):
    def arguments(index):
        changes = ACROSS | ({"optimizer__learning_rate": 0.5} if index else {})
        return ["-m", "tests.training.worker", json.dumps([run(tmp_path / "run") | {"changes": changes}])]

    codes, outputs = processes.finish(processes.start(arguments, 2, 4))
    assert codes == [2, 2], outputs
    for output in outputs:
        assert "config.optimizer.learning_rate is 0.5 there and 0.01 here" in output
    assert not (tmp_path / "run" / "config.json").exists()


@pytest.mark.multiprocess
@pytest.mark.slow
def test_folders_that_are_not_shared_are_refused(tmp_path):
    def arguments(index):
        return ["-m", "tests.training.worker", json.dumps([run(tmp_path / f"disk{index}")])]

    codes, outputs = processes.finish(processes.start(arguments, 2, 4))
    assert codes == [2, 2], outputs
    assert "Process 1 sees another folder than process 0" in outputs[0]


def test_a_difference_is_described_by_host_and_key():
    ours = {"host": "a", "config.seed": "0", "source x.py": "12"}
    same = {**ours, "host": "b"}
    text = distributed.describe_difference([ours, same, {**same, "host": "c", "source x.py": "34"}])
    assert text.startswith("Process 2 on host c and process 0 on host a")
    assert "source x.py is 34 there and 12 here" in text
    assert "optimizer" not in text
    text = distributed.describe_difference([ours, {"host": "b", "config.seed": "0"}])
    assert "source x.py is missing there and 12 here" in text


def test_the_fingerprint_covers_configuration_sources_versions_and_data():
    entries = distributed.fingerprint(toy.config(), {"statistics": {"mean": list(range(99))}})
    assert entries["config.optimizer.learning_rate"] == "0.01"
    assert "source pokevla_jax/training/loop.py" in entries
    assert "XLA_FLAGS (environment)" in entries
    assert entries != distributed.fingerprint(toy.config(), {"statistics": {"mean": list(range(98))}})


class Device:
    platform = "cpu"

    def __init__(self, process_index):
        self.process_index = process_index


@pytest.mark.parametrize(
    ("shape", "owners", "expected"),
    [
        ((1, 8, 1, 1), [0, 0, 0, 0, 1, 1, 1, 1], {0: (0, 2), 1: (1, 2)}),
        ((1, 2, 2, 2), [0, 0, 0, 0, 1, 1, 1, 1], {0: (0, 2), 1: (1, 2)}),
        # Every process holds every row: all load the same.
        ((1, 1, 1, 8), [0, 0, 0, 0, 1, 1, 1, 1], {0: (0, 1), 1: (0, 1)}),
        ((1, 2, 1, 4), [0, 0, 1, 1, 2, 2, 3, 3], {0: (0, 2), 1: (0, 2), 2: (1, 2), 3: (1, 2)}),
        # As on a torus, where a host's chips are not neighbours in the order of the mesh.
        ((1, 8, 1, 1), [0, 0, 1, 1, 0, 0, 1, 1], {0: (0, 2), 1: (1, 2)}),
    ],
)
def test_each_process_loads_the_rows_that_its_devices_hold(monkeypatch, shape, owners, expected):
    devices = dict(zip(jax.devices(), owners, strict=True))

    class Placed:
        def devices_indices_map(self, global_shape):
            mesh = sharding.Mesh(np.asarray(jax.devices()).reshape(shape), sharding.AXES)
            real = sharding.NamedSharding(mesh, sharding.PartitionSpec(sharding.BATCH_AXES))
            return {Device(devices[d]): index for d, index in real.devices_indices_map(global_shape).items()}

    mesh = sharding.Mesh(np.asarray(jax.devices()).reshape(shape), sharding.AXES)
    monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: Placed())
    assert {process: sharding.loader_place(mesh, process) for process in set(owners)} == expected


def test_rows_that_overlap_in_part_are_refused(monkeypatch):
    owners = dict(zip(jax.devices(), [0, 0, 1, 1, 1, 1, 0, 1], strict=True))
    mesh = sharding.Mesh(np.asarray(jax.devices()).reshape(1, 4, 1, 2), sharding.AXES)
    real = sharding.batch_sharding(mesh)

    class Placed:
        def devices_indices_map(self, global_shape):
            return {Device(owners[d]): index for d, index in real.devices_indices_map(global_shape).items()}

    monkeypatch.setattr(sharding, "batch_sharding", lambda mesh: Placed())
    with pytest.raises(ConfigError, match="overlap in part"):
        sharding.loader_place(mesh, 0)


@pytest.mark.parametrize("name", ["JAX_NUM_PROCESSES", "JAX_PROCESS_ID"])
def test_half_an_environment_is_refused(monkeypatch, name):
    values = {"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    for key, value in values.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=f"JAX_NUM_PROCESSES and JAX_PROCESS_ID must be numbers too.*{name}"):
        distributed.initialize()
