import dataclasses
import json
import os
import pickle
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings
from hypothesis import strategies as st

from pokevla_jax.data import manifest
from pokevla_jax.data.records import DataError
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.records import shard_exists
from pokevla_jax.data.records import write_shard
from tests.data import synthetic

COLUMNS = ("state", "action", "executed", "chunk_end", "base_from_camera", "keypoints")


@pytest.fixture
def folder(dataset, tmp_path):
    """A copy of the dataset that a test may damage."""
    return shutil.copytree(dataset.directory, tmp_path / "copy")


def test_everything_comes_back(dataset):
    assert dataset.views == synthetic.VIEWS
    assert dataset.image_size == (128, 128)
    for index, info in enumerate(dataset.episodes):
        expected, frames = synthetic.episode(int(info.id[-4:]))
        rows = slice(dataset.starts[index], dataset.starts[index + 1])
        for name in COLUMNS:
            np.testing.assert_array_equal(getattr(dataset, name)[rows], getattr(expected, name), err_msg=name)
        for name in ("id", "suite", "task", "instruction", "success", "source", "views"):
            assert getattr(info, name) == getattr(expected, name)
        np.testing.assert_allclose(info.intrinsics, expected.intrinsics)
        np.testing.assert_array_equal(dataset.step[rows], np.arange(len(expected)))
        rendered = np.flatnonzero(dataset.record[rows] >= 0)
        assert set(rendered) == set(frames)
        for step in rendered:
            stored = dataset.frame_at(int(dataset.starts[index] + step))
            for view in dataset.views:
                np.testing.assert_array_equal(stored.masks[view], frames[step].masks[view])
                assert np.abs(stored.depth[view] - frames[step].depth[view]).max() < 0.5e-3 + 1e-6


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_subset_of_steps_may_be_rendered(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("subset")
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    subsets = [data.draw(st.sets(st.integers(0, length - 1))) for length in lengths]
    episodes = []
    for number, (length, subset) in enumerate(zip(lengths, subsets, strict=True)):
        info, frames = synthetic.episode(number, length=length, size=8, every=1)
        episodes.append((info, {step: frames[step] for step in subset}))
    write_shard(folder, "a", episodes)
    dataset = open_dataset(folder)
    for index, (info, frames) in enumerate(episodes):
        record = dataset.record[dataset.starts[index] : dataset.starts[index + 1]]
        assert set(np.flatnonzero(record >= 0)) == set(frames)
        for step, frame in frames.items():
            stored = dataset.frame(0, record[step])
            np.testing.assert_array_equal(stored.masks["wrist"], frame.masks["wrist"], err_msg=f"{info.id} {step}")
    rows = np.flatnonzero(dataset.record < 0)
    if len(rows):
        with pytest.raises(DataError, match="was not rendered"):
            dataset.frame_at(int(rows[0]))


def test_the_manifest_counts_and_names_its_settings(dataset):
    stored = json.loads((dataset.directory / "manifest.json").read_text())
    assert stored == dataset.manifest
    assert stored["num_episodes"] == 6
    assert stored["num_steps"] == 120
    assert stored["num_records"] == 30
    assert stored["tasks"]["synthetic/0"] == {"episodes": 3, "success": 3, "steps": 60}
    assert stored["settings"] == [{"renderer": "rays"}]
    records = dataset.directory / "shard-0.arrayrecord"
    assert stored["shards"]["shard-0"]["records_sha256"] == manifest.sha256(records)


def test_an_interrupted_shard_does_not_exist(tmp_path):
    def episodes():
        yield synthetic.episode(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shard(tmp_path, "a", episodes())
    assert list(tmp_path.iterdir()) == []
    assert not shard_exists(tmp_path, "a")
    write_shard(tmp_path, "a", [synthetic.episode(0)])
    assert shard_exists(tmp_path, "a")
    assert len(open_dataset(tmp_path).episodes) == 1


def test_a_crash_between_the_two_files_leaves_no_shard(tmp_path, monkeypatch):
    renamed = []

    def replace(source, target, *, real=os.replace):
        if renamed:
            raise OSError("power cut")
        renamed.append(target)
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        with pytest.raises(OSError, match="power cut"):
            write_shard(tmp_path, "a", [synthetic.episode(0)])
    assert not shard_exists(tmp_path, "a")
    write_shard(tmp_path, "a", [synthetic.episode(0)])
    assert len(open_dataset(tmp_path).episodes) == 1


def test_a_shard_without_its_table_is_ignored_and_overwritten(folder):
    (folder / "shard-2.arrayrecord").write_bytes(b"left behind by a killed process")
    (folder / ".shard-2.parquet.99.tmp").write_bytes(b"the same")
    assert len(open_dataset(folder).episodes) == 6
    write_shard(folder, "shard-2", [synthetic.episode(17)])
    assert len(open_dataset(folder).episodes) == 7


def test_a_manifest_that_lacks_a_shard_is_rebuilt(folder, dataset):
    path = folder / "manifest.json"
    listed = json.loads(path.read_text())
    del listed["shards"]["shard-1"]
    path.write_text(json.dumps(listed))
    assert open_dataset(folder).manifest == dataset.manifest
    assert json.loads(path.read_text()) == dataset.manifest
    path.unlink()
    assert open_dataset(folder).manifest == dataset.manifest


def test_an_existing_shard_is_never_overwritten(folder):
    with pytest.raises(FileExistsError, match="shard-0"):
        write_shard(folder, "shard-0", [synthetic.episode(30)])


def test_an_episode_id_occurs_once(folder):
    with pytest.raises(DataError, match="'ball-0002' stands in shards shard-0 and b"):
        write_shard(folder, "b", [synthetic.episode(2)])
    assert len(open_dataset(folder).episodes) == 6


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden", "a" * 101, "a\n", "ä"])
def test_shard_names_stay_inside_the_folder(tmp_path, name):
    with pytest.raises(DataError, match="may hold letters"):
        write_shard(tmp_path / "data", name, [synthetic.episode(0)])
    assert not (tmp_path / "data").exists()


def test_a_flipped_byte_names_file_and_record_and_spares_the_others(folder):
    path = folder / "shard-1.arrayrecord"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)
    dataset = open_dataset(folder)
    errors = {}
    for row in np.flatnonzero(dataset.record >= 0):
        try:
            dataset.frame_at(int(row))
        except DataError as error:
            errors[row] = str(error)
    assert 1 <= len(errors) <= 2
    for row, message in errors.items():
        assert f"Record {dataset.record[row]} of {path} cannot be read" in message


@pytest.mark.parametrize("suffix", ["arrayrecord", "parquet"])
@pytest.mark.parametrize("keep", [0.0, 0.5])
def test_a_truncated_file_is_named_on_opening(folder, suffix, keep):
    path = folder / f"shard-0.{suffix}"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    with pytest.raises(DataError, match=f"{path}.*restore it from a copy"):
        open_dataset(folder)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(DataError, match=rf"^{tmp_path} cannot be written \(.*File too large\); make room there"):
            write_shard(tmp_path, "a", [synthetic.episode(0)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list(tmp_path.iterdir()) == []


def test_missing_files_are_named(folder):
    os.remove(folder / "shard-0.arrayrecord")
    with pytest.raises(DataError, match=r"shard-0.arrayrecord is missing"):
        open_dataset(folder)
    os.remove(folder / "shard-0.parquet")
    with pytest.raises(DataError, match=r"manifest.json lists shard 'shard-0', which is missing"):
        open_dataset(folder)
    os.remove(folder / "manifest.json")
    assert len(open_dataset(folder).episodes) == 3


def _with_header(folder, **changes):
    path = folder / "shard-0.parquet"
    table = pq.read_table(path)
    header = json.loads(table.schema.metadata[manifest.METADATA_KEY])
    header.update(changes)
    pq.write_table(table.replace_schema_metadata({manifest.METADATA_KEY: json.dumps(header)}), path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 99}, "format 99, this version reads 1"),
        ({"num_records": "many"}, "no valid 'num_records'"),
        ({"num_records": 2}, "out of range"),
        ({"episodes": []}, "no episode"),
        ({"episodes": [{"id": "x"}]}, "episode 0 without a valid 'suite'"),
        ({"image_size": [64, 64]}, r"images of \[64, 64\] and \[128, 128\]"),
        ({"records_sha256": "0"}, "not the one"),
    ],
)
def test_a_foreign_header_is_refused_by_name(folder, changes, message):
    _with_header(folder, **changes)
    with pytest.raises(DataError, match=message):
        open_dataset(folder)


@pytest.mark.parametrize("column", ["state", "chunk_end", "record", "episode"])
def test_a_table_without_a_column_is_refused(folder, column):
    path = folder / "shard-0.parquet"
    pq.write_table(pq.read_table(path).drop_columns([column]), path)
    with pytest.raises(DataError, match=f"shard-0.parquet lacks column '{column}'"):
        open_dataset(folder)


def test_a_foreign_table_is_refused(folder):
    path = folder / "other.parquet"
    pq.write_table(pq.read_table(folder / "shard-0.parquet").replace_schema_metadata({}), path)
    with pytest.raises(DataError, match=r"other.parquet is not a shard"):
        open_dataset(folder)


def test_an_unknown_manifest_is_refused(folder):
    (folder / "manifest.json").write_text('{"format": 7, "shards": {}}')
    with pytest.raises(DataError, match="format 7"):
        open_dataset(folder)
    (folder / "manifest.json").write_text("[]")
    with pytest.raises(DataError, match="is not a manifest"):
        open_dataset(folder)


def test_no_dataset_says_how_to_make_one(tmp_path):
    with pytest.raises(FileNotFoundError, match="pokevla-record"):
        open_dataset(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no complete shard"):
        open_dataset(tmp_path)
    with pytest.raises(DataError, match="gcsfuse"):
        open_dataset("gs://bucket/data")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"state": np.zeros((3, 8), np.float32)}, r"'state' .* shape \(3, 8\)"),
        ({"action": np.full((20, 7), np.nan, np.float32)}, "'action' .* not finite"),
        ({"chunk_end": np.full(20, 21)}, "chunk_end"),
        ({"chunk_end": np.zeros(20, int)}, "chunk_end"),
        ({"views": ("agentview",)}, "base_from_camera"),
    ],
)
def test_a_contradictory_episode_is_refused(tmp_path, changes, message):
    info, frames = synthetic.episode(0)
    with pytest.raises(DataError, match=message):
        write_shard(tmp_path, "a", [(dataclasses.replace(info, **changes), frames)])


def test_frames_must_fit_their_episode(tmp_path):
    info, frames = synthetic.episode(0)
    with pytest.raises(DataError, match="step 20 of 20"):
        write_shard(tmp_path, "a", [(info, {20: frames[0]})])
    one_view = dataclasses.replace(frames[0], images={"wrist": frames[0].images["wrist"]})
    with pytest.raises(DataError, match=r"images of views \['wrist'\]"):
        write_shard(tmp_path, "a", [(info, {0: one_view})])
    small = synthetic.episode(0, size=64)[1][0]
    with pytest.raises(DataError, match=r"others are \(128, 128\)"):
        write_shard(tmp_path, "a", [(info, {0: frames[0], 4: small})])


def test_a_dataset_travels_to_workers_and_threads(dataset):
    rows = [int(row) for row in np.flatnonzero(dataset.record >= 0)]
    expected = [dataset.frame_at(row).images["wrist"] for row in rows]
    copy = pickle.loads(pickle.dumps(dataset))
    with ThreadPoolExecutor(8) as pool:
        for image, frame in zip(expected * 4, pool.map(copy.frame_at, rows * 4), strict=True):
            np.testing.assert_array_equal(frame.images["wrist"], image)
