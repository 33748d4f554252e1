"""The recorder: the same content from any number of processes, resumable, geometrically consistent, plain errors."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from pokevla_jax.cli import record as cli
from pokevla_jax.data.records import open_dataset
from pokevla_jax.sim import recorder
from pokevla_jax.sim.demonstrate import Noise
from pokevla_jax.sim.demonstrate import load_trajectories
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.recorder import Recording
from pokevla_jax.sim.recorder import record

pytestmark = pytest.mark.sim


@pytest.fixture(scope="module")
def recording(libero_assets):
    """Two episodes in two shards, a few pictures each."""
    return Recording(
        suite="libero_object",
        tasks=(3,),
        episodes=2,
        layout_kind="moved",
        layout_seed=21,
        assets=libero_assets,
        noise=Noise(start_steps=4, burst=0.01),
        image_size=64,
        render_every=30,
        shard_size=1,
    )


@pytest.fixture(scope="module")
def recorded(recording, tmp_path_factory):
    out = tmp_path_factory.mktemp("recorded")
    results = record(recording, out)
    yield out, results
    recorder.close()


def test_stores_what_the_specification_asks_for(recorded):
    out, results = recorded
    assert [result.failed for result in results] == [(), ()]
    dataset = open_dataset(out)
    assert [info.source["index"] for info in dataset.episodes] == [0, 1]
    assert len({info.id for info in dataset.episodes}) == 2
    for index, info in enumerate(dataset.episodes):
        assert info.instruction == "pick up the bbq sauce and place it in the basket"
        assert info.success
        rows = slice(dataset.starts[index], dataset.starts[index + 1])
        np.testing.assert_array_equal(dataset.record[rows] >= 0, dataset.step[rows] % 30 == 0)
        assert dataset.state[rows].shape[1:] == (8,)
        assert np.abs(dataset.action[rows]).max() <= 1.0
        # The object starts on the floor and ends in the basket.
        target, goal = dataset.keypoints[rows][[0, -1]].transpose(1, 0, 2)
        assert np.linalg.norm((target - goal)[0, :2]) > 0.2
        assert np.linalg.norm((target - goal)[1, :2]) < 0.06
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["settings"][0]["layout_seed"] == 21


def test_depth_mask_and_cameras_agree_with_the_objects(recorded):
    """Masked pixels, lifted by depth and camera pose into the robot's frame, lie on target and basket."""
    dataset = open_dataset(recorded[0])
    frame = dataset.frame_at(0)
    for number, view in enumerate(dataset.views):
        v, u = np.nonzero(frame.masks[view])
        assert len(v) > 5
        rays = np.linalg.inv(dataset.episodes[0].intrinsics[number]) @ np.stack([u + 0.5, v + 0.5, np.ones(len(u))])
        pose = dataset.base_from_camera[0, number]
        points = (pose[:3, :3] @ (rays * frame.depth[view][v, u]) + pose[:3, 3:]).T
        distance = np.linalg.norm(points[:, None, :2] - dataset.keypoints[0][None, :, :2], axis=-1).min(1)
        assert np.quantile(distance, 0.9) < 0.13, view
        assert points[:, 2].min() > -0.02


def test_goes_on_where_it_was(recorded, recording, monkeypatch):
    out, _ = recorded
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.*record")}
    removed = sorted(out.glob("*.parquet"))[1]
    contents = removed.read_bytes(), removed.with_suffix(".arrayrecord").read_bytes()
    removed.unlink()
    (out / "manifest.json").unlink()
    # The states are there already: nothing is played again, and a new process draws the same pictures.
    recorder.close()
    monkeypatch.setattr(recorder, "demonstrate", None)
    results = record(recording, out)
    assert [result.reused for result in results] == [True, False]
    assert (removed.read_bytes(), removed.with_suffix(".arrayrecord").read_bytes()) == contents
    first = min(before)
    assert (out / first).stat().st_mtime_ns == before[first]
    monkeypatch.setattr(recorder, "record_shard", None)
    assert all(result.reused for result in record(recording, out))


def test_other_settings_do_not_mix(recorded, recording):
    with pytest.raises(SimulationError, match=r"recorded with other settings; choose another --out"):
        record(dataclasses.replace(recording, render_every=8), recorded[0])


def test_failures_are_counted_and_left_out(recorded, recording, tmp_path, monkeypatch):
    states = next((recorded[0] / "states").iterdir())
    played = load_trajectories(states)[0][0]
    outcomes = iter([False, True, False, False])
    monkeypatch.setattr(
        recorder,
        "demonstrate",
        lambda environment, layout, noise: dataclasses.replace(played, layout=layout, success=next(outcomes)),
    )
    results = record(dataclasses.replace(recording, episodes=4, shard_size=2, render_every=99), tmp_path)
    assert [(result.episodes, result.failed) for result in results] == [(2, (0,)), (2, (2, 3))]
    # A shard without a success has nothing to store; it is played no second time.
    assert [info.source["index"] for info in open_dataset(tmp_path).episodes] == [1]
    summary = cli.summarise(results, 1.0)
    assert (summary["attempted"], summary["stored"]) == (4, 1)
    assert summary["failed"] == {results[0].name: [0], results[1].name: [2, 3]}
    again = record(dataclasses.replace(recording, episodes=4, shard_size=2, render_every=99), tmp_path)
    assert [result.failed for result in again] == [(0,), (2, 3)]


@pytest.mark.multiprocess
def test_two_processes_record_what_one_does(recorded, recording, tmp_path):
    seen = []
    record(recording, tmp_path, workers=2, progress=seen.append)
    assert seen[0] == 0
    assert seen[-1] == 2
    names = sorted(path.name for path in recorded[0].glob("libero*.*"))
    assert names == sorted(path.name for path in tmp_path.glob("libero*.*"))
    for name in names:
        assert (recorded[0] / name).read_bytes() == (tmp_path / name).read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--episodes", "0"], "--episodes 0 is too small; give at least 1"),
        (
            ["--episodes", "2", "--task", "pick_up_the_milk"],
            "did you mean pick_up_the_milk_and_place_it_in_the_basket?",
        ),
        (["--episodes", "2", "--task", "12"], "has tasks 0 to 9, not 12"),
        (["--episodes", "2", "--suite", "libero_objects"], "did you mean libero_object?"),
        (["--episodes", "2", "--layout-kind", "mixed"], "known kinds: stored, moved, shared"),
        (["--episodes", "2", "--suite", "libero_goal"], "exist for libero_object only"),
        (["--episodes", "60", "--layout-kind", "stored"], "has 50 stored states; give --episodes 50 or fewer"),
        (["--episodes", "2", "--action-noise", "3"], "must lie between 0 and 1"),
        (["--episodes", "2", "--assets", "/nowhere"], "/nowhere"),
    ],
)
def test_wrong_requests_get_one_sentence(arguments, message, tmp_path, capsys):
    assert cli.main(["--out", str(tmp_path / "d"), *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1


def test_an_interruption_gets_one_sentence(libero_assets, tmp_path, capsys, monkeypatch):
    def interrupt(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr(recorder, "record_shard", interrupt)
    assert cli.main(["--out", str(tmp_path), "--episodes", "1", "--assets", str(libero_assets.root)]) == 130
    assert "interrupted; the same command goes on" in capsys.readouterr().err


def test_two_recordings_at_a_time_get_one_sentence(recorded, recording, tmp_path, monkeypatch):
    """The other one finishes a shard while this one plays it."""
    played = load_trajectories(next((recorded[0] / "states").iterdir()))[0][0]

    def demonstrate(*_args):
        for path in recorded[0].glob("*-00000-*"):
            shutil.copy(path, tmp_path)
        return played

    monkeypatch.setattr(recorder, "demonstrate", demonstrate)
    with pytest.raises(SimulationError, match="was written by another recording meanwhile; let one of them end"):
        record(recording, tmp_path)


def test_an_unwritable_folder_gets_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["--out", str(tmp_path / "file" / "d"), "--episodes", "1"]) == 2
    assert "Cannot write to --out" in capsys.readouterr().err


def test_tasks_are_read_in_all_their_forms():
    assert cli.parse_tasks("all", "libero_object") == tuple(range(10))
    assert cli.parse_tasks("0,3-5,3", "libero_object") == (0, 3, 4, 5)
    assert cli.parse_tasks("pick_up_the_milk_and_place_it_in_the_basket", "libero_object") == (7,)


def test_help_names_the_command():
    text = cli.parser().format_help()
    assert text.startswith("usage: pokevla-record")
    assert "--layout-seed" in text
