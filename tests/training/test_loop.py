"""The loop: what it writes, and that a run which was stopped or killed ends where an undisturbed one does."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from rich.console import Console
from safetensors.numpy import save_file

from pokevla_jax import checkpoints
from pokevla_jax.sharding import flatten
from pokevla_jax.training import init_from
from pokevla_jax.training import loop
from pokevla_jax.training import metrics
from pokevla_jax.training.checkpoint import DAMAGED
from pokevla_jax.training.workdir import WorkdirError
from tests.training import toy

MESH = {"mesh__data": 1, "mesh__replica": 8}  # the test process has eight devices


@pytest.fixture(scope="module", autouse=True)
def _compilation_cache(tmp_path_factory):
    """All runs of this file, its subprocess too, compile the same step: once is enough."""
    folder = str(tmp_path_factory.mktemp("xla"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_COMPILATION_CACHE_DIR", folder)
        patch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        yield
    jax.config.update("jax_compilation_cache_dir", None)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1)
    compilation_cache.reset_cache()


@pytest.fixture
def console(monkeypatch):
    """What the run prints."""
    text = io.StringIO()
    monkeypatch.setattr(metrics, "Console", lambda **arguments: Console(file=text, width=200, **arguments))
    return text


def train(workdir, data=None, objective=None, start=(), **changes):
    config = toy.config(**{**MESH, **changes})
    return loop.train(config, workdir, objective or toy.objective(0.1), data or toy.data(), init_from=start)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A complete run: its folder and its final state."""
    workdir = tmp_path_factory.mktemp("undisturbed")
    return workdir, train(workdir).state


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(np.array_equal(np.asarray(x), np.asarray(y)) for x, y in pairs)


def lines(workdir):
    return [(line["step"], line["split"]) for line in metrics.read_metrics(workdir)]


EXPECTED_LINES = sorted([(step, "train") for step in range(2, 13, 2)] + [(step, "holdout") for step in (4, 8, 12)])


def test_metrics_hold_each_split_and_figure_once(undisturbed):
    workdir, _ = undisturbed
    assert sorted(lines(workdir)) == EXPECTED_LINES
    train_line, holdout_line = metrics.read_metrics(workdir)[-2:]
    figures = {"loss", "loss/fit", "learning_rate", "step_seconds", "data_wait_seconds", "samples_per_second"}
    assert figures < train_line.keys()
    assert np.isclose(train_line["samples_per_second"], toy.BATCH / train_line["step_seconds"], rtol=1e-4)
    assert holdout_line.keys() == {"step", "split", "action_error"}


def test_the_best_checkpoint_is_named_and_kept(undisturbed):
    workdir, _ = undisturbed
    errors = {x["step"]: x["action_error"] for x in metrics.read_metrics(workdir) if x["split"] == "holdout"}
    best = checkpoints.read_best(workdir)
    assert best["step"] == min(errors, key=errors.get)
    steps = checkpoints.all_steps(workdir / checkpoints.CHECKPOINTS)
    assert best["step"] in steps
    assert len(steps) <= 3  # the last two and the best


def test_damaged_small_files_are_named_in_one_sentence(undisturbed, tmp_path):
    shutil.copytree(undisturbed[0], tmp_path / "run")
    for content in ("{", "{}", "[]"):
        (tmp_path / "run" / "best.json").write_text(content)
        with pytest.raises(
            checkpoints.CheckpointError, match=r"best\.json names no step \(.*\); restore it from a copy"
        ):
            checkpoints.resolve(tmp_path / "run", "best")
    for content in ("{", "[1]"):
        (tmp_path / "run" / "config.json").write_text(content)
        with pytest.raises(WorkdirError, match=r"config\.json is no configuration \(.*\); restore it, or give another"):
            train(tmp_path / "run")


def test_a_checkpoint_is_sufficient_by_itself(undisturbed):
    workdir, state = undisturbed
    for path in (workdir, workdir / "checkpoints", workdir / "checkpoints" / "12"):
        config, params, assets = checkpoints.load_policy_checkpoint(path)
        assert same(params, state.params)
        assert config == toy.config(**MESH)
        assert (assets.step, assets.statistics) == (12, {"mean": 0.5})
        assert "jax" in assets.versions
    with pytest.raises(checkpoints.CheckpointError, match="holds preset 'tiny', not 'pokevla'"):
        checkpoints.load_policy_checkpoint(workdir, preset="pokevla")
    with pytest.raises(checkpoints.CheckpointError, match="has no step 5; there are"):
        checkpoints.load_policy_checkpoint(workdir, 5)
    with pytest.raises(checkpoints.CheckpointError, match="does not exist"):
        checkpoints.load_policy_checkpoint(workdir / "other")


class StopAt(toy.Batches):
    """Sends this process SIGTERM while the batch of step 8 is drawn."""

    def __next__(self):
        if self.step == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().__next__()


def test_sigterm_saves_and_the_continued_run_equals_an_undisturbed_one(tmp_path, console, undisturbed):
    stopped = train(tmp_path, toy.data(StopAt))
    assert (stopped.step, stopped.stopped_by) == (8, "SIGTERM")
    assert "saved step 8" in console.getvalue()
    assert checkpoints.all_steps(tmp_path / "checkpoints")[-1] == 8
    finished = train(tmp_path)
    assert same(finished.state, undisturbed[1])
    assert sorted(lines(tmp_path)) == EXPECTED_LINES


KILLED = """
import os, signal, sys
from tests.training import toy
from pokevla_jax.training import loop

class Killed(toy.Batches):
    def __next__(self):
        if self.step == {step}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__next__()

loop.train(toy.config(**{mesh!r}), sys.argv[1], toy.objective(0.1), toy.data(Killed))
"""


@pytest.mark.multiprocess
def test_a_killed_process_continues_bit_for_bit(tmp_path, undisturbed):
    step = int(np.random.default_rng().integers(4, 12))  # any step will do; a failure names it
    program = KILLED.format(step=step, mesh=MESH)
    killed = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    saved = checkpoints.all_steps(tmp_path / "checkpoints")
    assert not saved or saved[-1] <= step
    finished = train(tmp_path)
    assert same(finished.state, undisturbed[1]), f"killed at step {step}, continued after {saved}"
    assert sorted(lines(tmp_path)) == EXPECTED_LINES
    assert checkpoints.read_best(tmp_path) == checkpoints.read_best(undisturbed[0])


def values_file(step):
    """Where the numbers are."""
    (path,) = (step / "params" / "d").iterdir()
    return path


def truncate(step):
    path = values_file(step)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_byte(step):
    path = values_file(step)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def empty(step):
    for path in step.rglob("*"):
        if path.is_file():
            path.unlink()


@pytest.mark.parametrize("damage", [truncate, flip_a_byte, empty])
def test_a_damaged_newest_checkpoint_is_skipped_with_a_message(tmp_path, caplog, undisturbed, damage):
    train(tmp_path, toy.data(StopAt))
    damage(tmp_path / "checkpoints" / "8")
    with pytest.raises(checkpoints.CheckpointError, match="use another step"):
        checkpoints.load_policy_checkpoint(tmp_path)
    finished = train(tmp_path)
    assert "step 8 is incomplete or damaged and is skipped" in caplog.text
    assert (tmp_path / DAMAGED / "8").exists()
    assert same(finished.state, undisturbed[1])
    assert sorted(lines(tmp_path)) == EXPECTED_LINES


class AlwaysNan(toy.Batches):
    def __next__(self):
        batch = super().__next__()
        return {**batch, "x": batch["x"] * np.float32("nan")}


def test_a_diverged_run_names_the_step_and_keeps_no_such_state(tmp_path):
    class Poisoned(toy.Batches):
        def __next__(self):
            batch = super().__next__()
            return {**batch, "y": batch["y"] * np.float32("nan")} if self.step == 6 else batch

    with pytest.raises(metrics.DivergedError, match="diverged at step 6: grad_norm, loss, loss/fit not finite"):
        train(tmp_path, toy.data(Poisoned))
    assert checkpoints.all_steps(tmp_path / "checkpoints")[-1] < 6


def test_a_folder_of_another_run_or_without_permission_is_refused(tmp_path, undisturbed):
    with pytest.raises(ValueError, match=r"holds a run with config\.optimizer\.learning_rate = 0\.01, not 0\.5;"):
        train(undisturbed[0], optimizer__learning_rate=0.5)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        train(tmp_path / "file" / "run")


def test_a_folder_whose_run_saved_nothing_takes_another_configuration(tmp_path):
    with pytest.raises(metrics.DivergedError, match="step 1: grad_norm"):
        train(tmp_path, toy.data(lambda _: AlwaysNan(0)))
    assert train(tmp_path, num_steps=1, seed=1).step == 1


def test_a_complete_run_does_nothing(undisturbed, console):
    workdir, state = undisturbed
    before = (workdir / "metrics.jsonl").read_text()
    assert same(train(workdir, log_every=1).state, state)
    assert "complete at step 12" in console.getvalue()
    assert (workdir / "metrics.jsonl").read_text() == before


def test_init_from_loads_what_matches_and_says_so(tmp_path, console, undisturbed):
    workdir, state = undisturbed
    result = train(tmp_path / "new", start=[workdir], num_steps=1, optimizer__learning_rate=0.0)
    assert "(step 12): 6 of 6 parameters loaded" in console.getvalue()
    assert same(result.state.params, state.params)
    other = toy.objective()
    shapes = {**other.abstract_params, "head": {"kernel": jax.ShapeDtypeStruct((16, 9), np.float32)}}
    object.__setattr__(other, "abstract_params", shapes)
    with pytest.raises(checkpoints.CheckpointError, match="head/kernel is 16x3 there and 16x9 here"):
        train(tmp_path / "other", objective=other, start=[workdir])


def imported(run, folder, **described):
    """A copy of a run's last checkpoint that says more of itself, as an import does."""
    step = checkpoints.resolve(run)
    shutil.copytree(step, folder / "checkpoints" / step.name)
    assets = folder / "checkpoints" / step.name / "assets"
    (said,) = (path for path in assets.iterdir() if "versions" in path.read_text())
    said.write_text(json.dumps(json.loads(said.read_text()) | described))
    return folder


def test_each_parameter_comes_from_the_first_checkpoint_that_has_it(tmp_path, undisturbed):
    """What an import did not find, and drew at random, it does not have."""
    workdir, state = undisturbed
    second = train(tmp_path / "other", num_steps=1, seed=1).state.params
    everything = imported(tmp_path / "other", tmp_path / "b", fresh=["embed/bias"])
    some = imported(workdir, tmp_path / "a", fresh=["head/kernel", "embed/bias"])
    result, said = init_from.load([some, everything], toy.config(seed=2), toy.objective())
    first, found, fresh = flatten(state.params), flatten(result), flatten(toy.initialize(jax.random.key(2)))
    assert not np.array_equal(first["head/kernel"], flatten(second)["head/kernel"])
    expected = first | {"head/kernel": flatten(second)["head/kernel"], "embed/bias": fresh["embed/bias"]}
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)
    assert [line.partition(" (step ")[2] for line in said.splitlines()] == [
        "12): 4 of 6 parameters loaded: blocks (3), embed (1)",
        "1): 1 of 6 parameters loaded: head (1); fresh: embed (1)",
    ]
    with pytest.raises(checkpoints.CheckpointError, match=r"other shares no parameter .* that those before it lack"):
        init_from.load([workdir, tmp_path / "other"], toy.config(), toy.objective())


def test_a_run_passes_on_where_its_weights_came_from(tmp_path, undisturbed):
    """In every checkpoint, after a restart too; what only PyTorch needs lies beside them."""
    origins = [{"kind": "VGGT", "file": "model.pt"}, {"kind": "SAM", "file": "sam.pth"}]
    head = imported(undisturbed[0], tmp_path / "head", fresh=["embed/bias"], imported_from=origins[:1])
    rest = imported(undisturbed[0], tmp_path / "rest", imported_from=origins)
    tensors = {"a": np.ones(3, jnp.bfloat16), "b": np.arange(2, dtype=np.float32)}
    for folder, carried in ((head, tensors), (rest, {"b": np.zeros(2, np.float16), "c": np.ones(1, np.float16)})):
        save_file(carried, folder / "checkpoints" / "12" / "assets" / checkpoints.CARRIED)
    train(tmp_path / "new", start=[head, rest], num_steps=1)
    for folder in (head, rest):
        shutil.rmtree(folder)
    step = checkpoints.resolve(tmp_path / "new")
    assert list(checkpoints.load_assets(step)[1].imported_from) == origins
    found = checkpoints.read_carried(step)
    assert found.keys() == {"a", "b", "c"}
    for name, array in tensors.items():  # the first checkpoint's, where both carry one
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
    # A restart finds it in the run itself.
    assert init_from.inherited(epath.Path(tmp_path / "new"), ()) == {"imported_from": origins}
    train(tmp_path / "fresh", num_steps=1)
    assert list(checkpoints.load_assets(tmp_path / "fresh")[1].imported_from) == []


def test_log_drops_what_lies_beyond_the_restored_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "split": "train"}\n{"step": 4, "split": "train"}\n{"step": 6, "sp')
    metrics.MetricsLog(tmp_path, 2).write(4, "train", {"loss": float("inf")})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"step": 2, "split": "train"},
        {"step": 4, "split": "train", "loss": None},
    ]


def test_moving_average_is_what_inference_loads_and_both_are_restored(tmp_path):
    whole = train(tmp_path / "a", optimizer__ema_decay=0.9).state
    train(tmp_path / "b", toy.data(StopAt), optimizer__ema_decay=0.9)
    assert same(train(tmp_path / "b", optimizer__ema_decay=0.9).state, whole)
    _, params, _ = checkpoints.load_policy_checkpoint(tmp_path / "b")
    assert flatten(params).keys() == flatten(whole.params).keys()
    assert same(params, whole.inference_params)
    assert not same(params, whole.params)
