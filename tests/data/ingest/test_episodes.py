"""Robot episodes of foreign formats, brought to this project's conventions."""

import dataclasses
import json

import h5py
import numpy as np
import pytest

from pokevla_jax.cli import ingest as cli
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.conventions import gripper_dims
from pokevla_jax.data.conventions import noop_steps
from pokevla_jax.data.conventions import to_stored_gripper
from pokevla_jax.data.ingest.robots import KNOWN
from pokevla_jax.data.ingest.robots import build_episode
from pokevla_jax.data.ingest.robots import load_robot
from pokevla_jax.data.records import open_dataset
from tests.data import synthetic
from tests.data.ingest import foreign


def run(kind, data, out, *more):
    arguments = ["--source", kind, "--data", str(data), "--out", str(out), "--shard-size", "2", "--json", *more]
    assert cli.main(arguments) == 0
    dataset = open_dataset(out)
    (summary,) = out.glob("ingest-*.json")
    return dataset, json.loads(summary.read_text())


def rows(dataset, index):
    return slice(int(dataset.starts[index]), int(dataset.starts[index + 1]))


def reasons(summary):
    return {entry["id"]: entry["reason"] for entry in summary["rejected_samples"]}


def assert_shows(frame, view, expected):
    """The picture, which way up it stands, and its colour; JPEG rings about the edge."""
    difference = np.abs(frame.images[view].astype(int) - expected)
    assert difference.shape == (foreign.HEIGHT, foreign.WIDTH, 3)
    assert difference.max() < 40
    assert np.mean(difference > 6) < 0.03


def test_libero_hdf5_is_turned_upright_and_loses_its_noops(tmp_path):
    foreign.libero_hdf5(tmp_path / "in/libero_10/open_the_drawer_demo.hdf5")
    dataset, summary = run("libero_hdf5", tmp_path / "in", tmp_path / "out", "--name", "libero_10")
    assert summary["rejected"] == 0
    assert [info.id for info in dataset.episodes] == [f"open_the_drawer/demo_{n}" for n in range(3)]
    assert {info.instruction for info in dataset.episodes} == {"open the drawer"}
    assert {info.suite for info in dataset.episodes} == {"libero_10"}
    states, actions = foreign.episode_numbers(1)
    kept = [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(dataset.state[rows(dataset, 1)], states[kept])
    np.testing.assert_array_equal(dataset.action[rows(dataset, 1)], actions[kept])
    for place, step in enumerate(kept):
        frame = dataset.frame_at(int(dataset.starts[1]) + place)
        assert_shows(frame, "agentview", foreign.picture(10 + step))
        assert_shows(frame, "wrist", foreign.picture(10 + step) // 2)
    assert dataset.keypoints.shape == (15, 0, 3)


@pytest.mark.tensorflow
def test_rlds_of_libero(tmp_path):
    foreign.rlds(tmp_path / "in")
    dataset, summary = run("rlds", tmp_path / "in", tmp_path / "out", "--name", "libero_10")
    assert summary["rejected"] == 0
    assert [info.instruction for info in dataset.episodes] == [f"do {n}" for n in range(4)]
    states, actions = foreign.episode_numbers(2)
    np.testing.assert_array_equal(dataset.state[rows(dataset, 2)], states)
    np.testing.assert_array_equal(dataset.action[rows(dataset, 2)], actions)
    frame = dataset.frame_at(int(dataset.starts[2]) + 1)
    assert_shows(frame, "agentview", foreign.picture(21))
    assert_shows(frame, "wrist", foreign.picture(24))
    # The numbers are what LIBERO's own files hold, up to the no-ops that this set had left out already.
    foreign.libero_hdf5(tmp_path / "h5/x_demo.hdf5")
    other, _ = run("libero_hdf5", tmp_path / "h5", tmp_path / "other")
    np.testing.assert_array_equal(other.action[rows(other, 0)], np.delete(dataset.action[rows(dataset, 0)], 2, axis=0))


@pytest.mark.tensorflow
def test_open_x_gripper_opens_at_one(tmp_path):
    actions = foreign.episode_numbers(1)[1]
    foreign.rlds(tmp_path / "in", "bridge_dataset", count=2, shards=1)
    path = tmp_path / "robot.json"
    robot = dataclasses.asdict(KNOWN["bridge_rlds"]) | {"views": {"agentview": "observation/image"}}
    path.write_text(json.dumps(robot))
    dataset, _ = run("rlds", tmp_path / "in", tmp_path / "out", "--robot", str(path))
    np.testing.assert_array_equal(dataset.action[rows(dataset, 1)][:, :6], actions[:, :6])
    np.testing.assert_array_equal(dataset.action[rows(dataset, 1)][:, 6], 1 - 2 * actions[:, 6])


@pytest.mark.parametrize(
    ("version", "dtype"), [("v2.1", "video"), ("v3.0", "video"), ("v2.1", "image"), ("v3.0", "image")]
)
def test_lerobot(tmp_path, version, dtype):
    foreign.lerobot(tmp_path / "in", version, dtype=dtype)
    dataset, summary = run("lerobot", tmp_path / "in", tmp_path / "out", "--name", "mine")
    assert summary["rejected"] == 0
    assert dataset.views == ("image", "wrist_image")
    for n in range(3):
        states, actions = foreign.episode_numbers(n, length=5 + n)
        here = rows(dataset, n)
        np.testing.assert_array_equal(dataset.state[here], states)
        np.testing.assert_array_equal(dataset.action[here], actions)
        assert dataset.episodes[n].instruction == f"task {n % 2}"
        for step in (0, 4 + n):
            frame = dataset.frame_at(here.start + step)
            # 4:2:0 smears colours over an edge.
            for k, view in enumerate(dataset.views):
                expected = foreign.picture(n * 10 + step + k)
                np.testing.assert_allclose(frame.images[view][-6:, -8:].astype(int), expected[-6:, -8:], atol=8)
                assert frame.images[view][1, 1].min() > 200


@pytest.mark.parametrize("version", ["v2.0", "v1.6", "v4.0", None])
def test_another_lerobot_version_is_refused_by_name(tmp_path, version, capsys):
    foreign.lerobot(tmp_path, "v2.1", count=1)
    info = json.loads((tmp_path / "meta/info.json").read_text()) | {"codebase_version": version}
    (tmp_path / "meta/info.json").write_text(json.dumps(info))
    assert cli.main(["--source", "lerobot", "--data", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"version {version!r}; v2.1 and v3.0 are read" in error
    assert error.count("\n") == 1


def nan_action(actions):
    actions = actions.copy()
    actions[3, 2] = np.nan
    return actions


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"actions": nan_action(foreign.episode_numbers(1)[1])}, "not finite"),
        ({"obs/ee_states": np.full((6, 6), np.inf)}, "not finite"),
        ({"actions": np.full((6, 7), b"x")}, "wrong type"),
        ({"actions": foreign.episode_numbers(1)[1][:4]}, "malformed"),
        ({"actions": foreign.episode_numbers(1)[1][:, :6]}, "wrong size"),
        ({"obs/agentview_rgb": np.zeros((6, 30, 30, 3), np.uint8)}, "wrong size"),
        ({"obs/agentview_rgb": np.zeros((6, 24, 40, 3), np.float32)}, "wrong type"),
        ({"obs/agentview_rgb": np.zeros((0, 24, 40, 3), np.uint8)}, "malformed"),
    ],
)
def test_a_damaged_episode_is_named_and_the_rest_ingested(tmp_path, change, reason):
    foreign.libero_hdf5(tmp_path / "in/a_demo.hdf5", **change)
    dataset, summary = run("libero_hdf5", tmp_path / "in", tmp_path / "out")
    assert [info.id for info in dataset.episodes] == ["a/demo_0", "a/demo_2"]
    assert reasons(summary) == {"a/demo_1": reason}


def test_mixed_number_types_are_one_type_here(tmp_path):
    states, actions = foreign.episode_numbers(1)
    foreign.libero_hdf5(
        tmp_path / "in/a_demo.hdf5",
        **{"actions": actions.astype(np.float16), "obs/gripper_states": np.ones((6, 2), int)},
    )
    dataset, summary = run("libero_hdf5", tmp_path / "in", tmp_path / "out")
    assert summary["rejected"] == 0
    assert dataset.action.dtype == dataset.state.dtype == np.float32
    np.testing.assert_array_equal(dataset.state[rows(dataset, 1)][:, 6:], 1)


def test_missing_parts_and_copies_of_a_file(tmp_path):
    path = foreign.libero_hdf5(tmp_path / "in/a_demo.hdf5")
    foreign.libero_hdf5(tmp_path / "in/copy/a_demo.hdf5", count=1)
    (tmp_path / "in/z_demo.hdf5").write_bytes(path.read_bytes()[:2000])
    with h5py.File(path, "a") as file:
        del file["data/demo_2/obs/eye_in_hand_rgb"]
    dataset, summary = run("libero_hdf5", tmp_path / "in", tmp_path / "out")
    assert [info.id for info in dataset.episodes] == ["a/demo_0", "a/demo_1"]
    expected = {"a/demo_2": "missing image", "a/demo_0": "duplicate id", "z_demo.hdf5/...": "truncated shard"}
    assert reasons(summary) == expected


@pytest.mark.tensorflow
def test_broken_tfrecords(tmp_path):
    foreign.rlds(tmp_path / "in", count=6, shards=2)
    first, second = sorted((tmp_path / "in").glob("**/*.tfrecord*"))
    data = bytearray(first.read_bytes())
    length = int.from_bytes(data[:8], "little")
    data[12 + length // 2] ^= 0xFF
    first.write_bytes(data)
    second.write_bytes(second.read_bytes()[:-100])
    dataset, summary = run("rlds", tmp_path / "in", tmp_path / "out")
    assert [info.instruction for info in dataset.episodes] == ["do 1", "do 2", "do 3", "do 4"]
    assert reasons(summary) == {f"{first.name}/0": "truncated shard", f"{second.name}/2...": "truncated shard"}


@pytest.mark.tensorflow
def test_bad_features_of_an_rlds_episode(tmp_path):
    good = foreign.jpeg_bytes(foreign.picture(1))
    changes = {
        "broken image": {"steps/observation/image": [b"no picture"] * 6},
        "malformed": {"steps/observation/image": [good] * 5},
        "not finite": {"steps/observation/state": np.full((6, 8), np.nan, np.float32)},
        "wrong type": {"steps/action": [b"a"] * 6},
        "empty answer": {"steps/language_instruction": [b" "] * 6},
    }
    for reason, change in changes.items():
        folder = tmp_path / reason.replace(" ", "_")
        foreign.rlds(folder / "in", count=3, shards=1, **change)
        dataset, summary = run("rlds", folder / "in", folder / "out")
        assert len(dataset.episodes) == 2
        assert list(reasons(summary).values()) == [reason]


def test_damaged_lerobot(tmp_path):
    foreign.lerobot(tmp_path / "in", "v2.1", count=5)
    videos = sorted((tmp_path / "in").glob("videos/*/*image/*.mp4"))
    videos[1].unlink()
    videos[2].write_bytes(videos[2].read_bytes()[:300])
    (tmp_path / "in/data/chunk-000/episode_000003.parquet").write_bytes(b"PAR1")
    lines = (tmp_path / "in/meta/episodes.jsonl").read_text().splitlines()
    (tmp_path / "in/meta/episodes.jsonl").write_text("\n".join([*lines, lines[0], "{broken"]))
    dataset, summary = run("lerobot", tmp_path / "in", tmp_path / "out", "--name", "mine")
    assert [info.id for info in dataset.episodes] == ["episode_000000", "episode_000004"]
    assert reasons(summary) == {
        "episode_000001": "missing image",
        "episode_000002": "broken image",
        "episode_000003": "truncated shard",
        "episode_000000": "duplicate id",
        "episodes.jsonl/6": "malformed",
    }


def test_recordings_keep_everything_and_may_become_smaller(tmp_path):
    synthetic.write(tmp_path / "in", num_episodes=4)
    before = open_dataset(tmp_path / "in")
    dataset, summary = run("recordings", tmp_path / "in", tmp_path / "out", "--image-size", "64")
    assert summary["ingested"] == 4
    order = [[info.id for info in before.episodes].index(info.id) for info in dataset.episodes]
    for new, old in enumerate(order):
        for name in ("state", "action", "executed", "chunk_end", "base_from_camera", "keypoints"):
            np.testing.assert_array_equal(
                getattr(dataset, name)[rows(dataset, new)], getattr(before, name)[rows(before, old)]
            )
        np.testing.assert_allclose(dataset.episodes[new].intrinsics[:, :2], before.episodes[old].intrinsics[:, :2] / 2)
    frame, other = dataset.frame_at(4), before.frame_at(int(before.starts[order[0]]) + 4)
    assert frame.images["wrist"].shape == (64, 64, 3)
    for view in frame.images:
        np.testing.assert_array_equal(frame.masks[view], other.masks[view][::2, ::2])
        np.testing.assert_allclose(frame.depth[view], other.depth[view][::2, ::2], atol=1e-3)


def test_masks_and_depth_are_read_where_the_robot_says(tmp_path):
    depth = np.full((6, 24, 40), 1500, np.uint16)
    mask = np.zeros((6, 24, 40), np.uint8)
    mask[:, :6, :10] = 7
    foreign.libero_hdf5(tmp_path / "in/a_demo.hdf5", count=2, **{"obs/depth": depth, "obs/mask": mask})
    matrix = [[10.0, 0.0, 20.0], [0.0, 10.0, 12.0], [0.0, 0.0, 1.0]]
    robot = json.loads(json.dumps(dataclasses.asdict(KNOWN["libero_hdf5"])))
    robot |= {"depth": {"agentview": "obs/depth"}, "masks": {"agentview": "obs/mask"}}
    robot["views"].pop("wrist")
    robot |= {"intrinsics": {"agentview": matrix}, "base_from_camera": {"agentview": np.eye(4).tolist()}}
    path = tmp_path / "robot.json"
    path.write_text(json.dumps(robot))
    dataset, summary = run("libero_hdf5", tmp_path / "in", tmp_path / "out", "--robot", str(path))
    assert reasons(summary) == {"a/demo_0": "missing image"}
    frame = dataset.frame_at(0)
    np.testing.assert_allclose(frame.depth["agentview"], 1.5)
    assert frame.masks["agentview"][-6:, -10:].all()
    assert frame.masks["agentview"].sum() == 60
    np.testing.assert_allclose(dataset.episodes[0].intrinsics[0], matrix)
    del robot["intrinsics"]
    path.write_text(json.dumps(robot))
    with pytest.raises(DataError, match="Depth of robot 'libero' needs intrinsics"):
        load_robot(str(path))
    path.write_text(json.dumps(robot | {"vews": {}}))
    with pytest.raises(DataError, match=r"did you mean robot\.views"):
        load_robot(str(path))


@pytest.mark.parametrize(
    ("convention", "opens", "closes"),
    [("minus_opens", -1, 1), ("plus_opens", 1, -1), ("one_opens", 1, 0), ("zero_opens", 0, 1)],
)
def test_every_gripper_convention_becomes_libero_s(convention, opens, closes):
    np.testing.assert_array_equal(to_stored_gripper(np.array([opens, closes], np.float32), convention), [-1, 1])


def test_noops_by_hand():
    action = np.array([[0, 0, -1], [0, 0, -1], [0, 0, 1], [0.1, 0, 1], [0, 0, 1], [0, 0, 1]], np.float32)
    first = np.array([True, False, False, False, False, True])
    np.testing.assert_array_equal(noop_steps(action, first, [2]), [1, 1, 0, 0, 1, 1])
    # Positions: what stays where it was does nothing, and the first step of an episode always says something.
    np.testing.assert_array_equal(noop_steps(action, first, [2], absolute=True), [0, 1, 0, 0, 0, 0])
    assert gripper_dims((-1, 0, 2), 3) == (0, 2)
    with pytest.raises(DataError, match="do not lie within"):
        gripper_dims((3,), 3)


def test_a_misspelt_key_is_answered_with_its_neighbour():
    columns = {"obs/ee_state": np.zeros((2, 6)), "obs/gripper_states": np.zeros((2, 2)), "actions": np.zeros((2, 7))}
    with pytest.raises(DataError, match="no 'obs/ee_states'; did you mean 'obs/ee_state'"):
        build_episode(KNOWN["libero_hdf5"], id="a", suite="s", instruction="x", columns=columns, pictures={})
