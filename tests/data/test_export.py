"""Exports are read back by the readers of foreign data, and RLDS by TensorFlow's own parser."""

import dataclasses
import json

import numpy as np
import pytest

from pokevla_jax.cli import export as cli
from pokevla_jax.cli import ingest
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.records import write_shard
from tests.data import synthetic


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("recordings"), num_episodes=3, length=6, every=1, size=64)


def assert_same_numbers(dataset, other):
    np.testing.assert_array_equal(dataset.state, other.state)
    np.testing.assert_array_equal(dataset.action, other.action)
    np.testing.assert_array_equal(dataset.starts, other.starts)
    assert [info.instruction for info in dataset.episodes] == [info.instruction for info in other.episodes]


def test_lerobot_and_back(recordings, tmp_path):
    out = tmp_path / "lerobot"
    assert cli.main(["--data", str(recordings), "--format", "lerobot", "--fps", "20", "--out", str(out)]) == 0
    arguments = ["--source", "lerobot", "--data", str(out), "--out", str(tmp_path / "back"), "--name", "back", "--json"]
    assert ingest.main(arguments) == 0
    dataset, back = open_dataset(recordings), open_dataset(tmp_path / "back")
    assert_same_numbers(dataset, back)
    assert back.views == dataset.views
    for row in (0, 7, 17):
        for view in dataset.views:
            first, second = (data.frame_at(row).images[view].astype(int) for data in (dataset, back))
            # H.264 with half the colour resolution.
            assert np.abs(first - second).mean() < 4
    info = json.loads((out / "meta/info.json").read_text())
    assert (info["codebase_version"], info["total_frames"], info["fps"]) == ("v3.0", 18, 20)


@pytest.mark.tensorflow
def test_rlds_and_back(recordings, tmp_path):
    import tensorflow as tf

    out = tmp_path / "rlds"
    assert cli.main(["--data", str(recordings), "--format", "rlds", "--name", "balls", "--out", str(out)]) == 0
    arguments = ["--source", "rlds", "--data", str(out), "--out", str(tmp_path / "back"), "--json"]
    assert ingest.main(arguments) == 0
    dataset, back = open_dataset(recordings), open_dataset(tmp_path / "back")
    assert_same_numbers(dataset, back)
    (path,) = out.glob("balls/1.0.0/*.tfrecord*")
    records = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert len(records) == 3
    spec = {
        "steps/observation/image": tf.io.VarLenFeature(tf.string),
        "steps/action": tf.io.VarLenFeature(tf.float32),
        "steps/is_last": tf.io.VarLenFeature(tf.int64),
    }
    parsed = tf.io.parse_single_example(records[1], spec)
    images = tf.sparse.to_dense(parsed["steps/observation/image"]).numpy()
    # The stored files themselves, and what they show.
    row = int(dataset.starts[1]) + 2
    assert images[2] == dataset.jpegs_at(row)["agentview"]
    np.testing.assert_array_equal(tf.sparse.to_dense(parsed["steps/is_last"]).numpy(), [0, 0, 0, 0, 0, 1])
    described = json.loads((out / "balls/1.0.0/dataset_info.json").read_text())
    assert described["splits"][0]["shardLengths"] == ["3"]


@pytest.mark.tensorflow
def test_what_cannot_be_exported_leaves_nothing(tmp_path, capsys):
    synthetic.write(tmp_path / "some", num_episodes=2, every=4)
    out = tmp_path / "out"
    assert cli.main(["--data", str(tmp_path / "some"), "--format", "rlds", "--out", str(out)]) == 2
    assert "record with --render-every 1" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["some"]
    out.mkdir()
    info, frames = synthetic.episode(0, every=1, length=4)
    write_shard(tmp_path / "whole", "a", [(dataclasses.replace(info), frames)])
    assert cli.main(["--data", str(tmp_path / "whole"), "--format", "lerobot", "--out", str(out)]) == 2
    assert "exists; choose another --out" in capsys.readouterr().err
