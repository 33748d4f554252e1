"""Which checkpoints are kept, and that there is room for them before the first step."""

import dataclasses
import shutil
import types

import pytest
from etils import epath

from pokevla_jax import checkpoints
from pokevla_jax.config import CheckpointConfig
from pokevla_jax.training import loop
from pokevla_jax.training import workdir as workdir_lib
from tests.training import toy

MESH = {"mesh__data": 1, "mesh__replica": 8}  # the test process has eight devices


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"checkpoint__keep_last": 1}, {12}),
        ({"checkpoint__keep_last": 3}, {6, 9, 12}),
        ({"checkpoint__keep_last": 1, "checkpoint__keep_every": 6}, {6, 12}),
    ],
)
def test_the_last_and_those_in_between_are_kept(tmp_path, changes, kept):
    # Measured at the end alone, so that the best is the last (test_loop.py looks at another best).
    loop.train(toy.config(**MESH, eval_every=100, **changes), tmp_path, toy.objective(), toy.data())
    assert set(checkpoints.all_steps(tmp_path / "checkpoints")) == kept


def space(monkeypatch, tmp_path, config, free, num_steps=100, size=10):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=free))
    workdir_lib.check_space(epath.Path(tmp_path), size, config, num_steps)


@pytest.mark.parametrize(
    ("config", "num_steps", "number"),
    [
        # The last two, the best, and the one that is being written.
        (CheckpointConfig(every_steps=10, keep_last=2), 100, 4),
        (CheckpointConfig(every_steps=10, keep_last=2, keep_every=20), 100, 9),
        # A run too short to write so many.
        (CheckpointConfig(every_steps=50, keep_last=9), 100, 5),
    ],
)
def test_there_must_be_room_for_what_is_kept(monkeypatch, tmp_path, config, num_steps, number):
    space(monkeypatch, tmp_path, config, 10 * number, num_steps)
    with pytest.raises(ValueError, match=f"and {number} more checkpoints of .* need .*; free some space"):
        space(monkeypatch, tmp_path, config, 10 * number - 1, num_steps)
    # What an earlier attempt wrote is there already.
    (tmp_path / "checkpoints" / "30").mkdir(parents=True)
    space(monkeypatch, tmp_path, config, 10 * (number - 1), num_steps)


def test_a_full_disk_stops_a_run_before_its_first_step(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1000))
    config = toy.config(**MESH)
    config = dataclasses.replace(config, checkpoint=CheckpointConfig(keep_last=1))
    with pytest.raises(workdir_lib.WorkdirError, match="free some space"):
        loop.train(config, tmp_path, toy.objective(), toy.data())
    assert not (tmp_path / "metrics.jsonl").exists()
