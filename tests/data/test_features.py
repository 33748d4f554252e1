"""Features beside episodes: written whole or not at all, read row by row, never those of another teacher or image."""

import dataclasses
import json
import pickle
import shutil
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import numpy as np
import pytest

from pokevla_jax.config import AugmentConfig
from pokevla_jax.config import ConfigError
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import SegmentationConfig
from pokevla_jax.data import features
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.features import FeatureStore
from pokevla_jax.data.pipeline import holdout_batches
from pokevla_jax.data.pipeline import sample_rows
from pokevla_jax.data.pipeline import train_iterator
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.records import write_shard
from pokevla_jax.data.schema import batch_spec
from pokevla_jax.data.transforms import plain_images
from tests.data import synthetic

NAMES = ["segmentation_features", "geometry_targets"]


def make_config(**changes):
    """Both teachers' features precomputed, small ones."""
    config = synthetic.config(holdout_fraction=0.2)
    segmentation = SegmentationConfig(source="precomputed", feature_grid=4, decoder_dim=8)
    geometry = GeometryConfig(source="precomputed", feature_dim=6)
    model = dataclasses.replace(config.model, segmentation=segmentation, geometry=geometry)
    return dataclasses.replace(config, model=dataclasses.replace(model, **changes))


def rows_for(store, episode, salt=0):
    """Features that tell their row: those of another one are other numbers."""
    return [
        np.random.default_rng([salt, row]).normal(size=store.shape).astype(np.float16) for row in store.rows(episode)
    ]


def fill(config, dataset, *, weights="w", salt=0):
    for store in features.make_stores(config, dataset):
        store.claim(weights, {})
        for episode in store.missing():
            store.write(episode, rows_for(store, episode, salt))


@pytest.fixture
def folder(dataset, tmp_path):
    return shutil.copytree(dataset.directory, tmp_path / "balls")


@pytest.fixture(scope="module")
def filled(dataset, tmp_path_factory):
    """Read only: config, dataset and its open stores."""
    copy = open_dataset(shutil.copytree(dataset.directory, tmp_path_factory.mktemp("filled") / "balls"))
    config = make_config()
    fill(config, copy)
    return SimpleNamespace(config=config, dataset=copy, stores=features.open_stores(config, copy))


def test_a_row_reads_what_was_written_of_it_in_another_process_too(filled):
    rendered = np.flatnonzero(filled.dataset.record >= 0)
    assert len(rendered) < len(filled.dataset)  # so that places among rendered steps are not steps
    for store in pickle.loads(pickle.dumps(filled.stores)):
        for row in rendered[::-1]:
            expected = np.random.default_rng([0, row]).normal(size=store.shape).astype(np.float16)
            np.testing.assert_array_equal(store.read(int(row)), expected)


def test_batches_bring_the_features_of_their_rows(filled, statistics, tokenizer):
    config, dataset = filled.config, filled.dataset
    iterator = train_iterator(config, dataset, statistics, tokenizer, filled.stores)
    order, batch = [int(iterator._order(config.seed)[g][1]) for g in range(8)], next(iterator)
    iterator.close()
    rows = sample_rows(config, dataset, "holdout")
    held = next(holdout_batches(config, dataset, statistics, tokenizer, filled.stores))
    for found, places in ((batch, order), (held, rows[:8])):
        assert {name: (x.shape, x.dtype) for name, x in found.items()} == {
            name: tuple(spec) for name, spec in batch_spec(config, 8).items()
        }
        for index, row in enumerate(places):
            for store in filled.stores:
                np.testing.assert_array_equal(found[store.name][index], store.read(int(row)))
            # What the teachers were shown is what the network sees.
            np.testing.assert_array_equal(found["images"][index], plain_images(config, dataset, int(row)))


def test_neither_processes_nor_a_restart_change_a_step(filled, statistics, tokenizer):
    def start(**place):
        return train_iterator(filled.config, filled.dataset, statistics, tokenizer, filled.stores, **place)

    whole, half = start(), start(process_index=1, process_count=2)
    expected = [next(whole) for _ in range(4)]
    for batch in expected[:2]:
        part = next(half)
        assert all((part[name] == batch[name][4:]).all() for name in batch)
    resumed = start()
    resumed.set_state(half.get_state())
    following = next(resumed)
    assert all((following[name] == expected[2][name]).all() for name in following)
    for iterator in (whole, half, resumed):
        iterator.close()


def test_a_position_saved_with_other_features_is_refused(filled, folder, statistics, tokenizer):
    config, other = filled.config, open_dataset(folder)
    fill(config, other, weights="others")
    stores = features.open_stores(config, other)
    first, second = (train_iterator(config, other, statistics, tokenizer, s) for s in (filled.stores, stores))
    with pytest.raises(DataError, match=r"The saved data position has features '.*', this run has '.*'; restore it"):
        second.set_state(first.get_state())
    # A position of before there were features is one without.
    plain = train_iterator(synthetic.config(), other, statistics, tokenizer)
    state = plain.get_state()
    del state["features"]
    plain.set_state(state)
    with pytest.raises(DataError, match="has features ''"):
        first.set_state(state)


def test_a_killed_writer_leaves_nothing_that_looks_whole(dataset, folder):
    config = make_config()
    fill(config, open_dataset(folder))
    opened = open_dataset(folder)
    store = FeatureStore(config, opened, NAMES[0])
    store.open()
    victim = folder / features.FOLDER / store.name / store._file(2)
    whole = victim.read_bytes()
    victim.unlink()
    code = """
        import pickle, sys, time
        store = pickle.load(sys.stdin.buffer)
        row = store.read(int(store.rows(0)[0]))
        def rows():
            yield row
            print("half", flush=True)
            time.sleep(60)
        store.write(2, rows())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdin.write(pickle.dumps(store))
        process.stdin.close()
        assert process.stdout.readline() == b"half\n"
        process.kill()
    assert store.missing() == [2]
    with pytest.raises(DataError, match=r"lacks features of 1 of 6 episodes .* the first 'ball-.*'; run pokevla-feat"):
        features.open_stores(config, opened)
    store.write(2, rows_for(store, 2))
    assert victim.read_bytes() == whole
    features.open_stores(config, opened)


def test_other_frames_of_the_same_episodes_have_no_features(filled, tmp_path):
    copy = shutil.copytree(filled.dataset.directory, tmp_path / "copy")
    for name in ("shard-0.parquet", "shard-0.arrayrecord", "manifest.json"):
        (copy / name).unlink()
    write_shard(copy, "shard-0", [synthetic.episode(n) for n in (0, 2, 4)], jpeg_quality=60)
    with pytest.raises(DataError, match="lacks features of 3 of 6 episodes as they are in the dataset"):
        features.open_stores(filled.config, open_dataset(copy))


def test_more_episodes_need_their_own_features_alone(filled, tmp_path):
    copy = shutil.copytree(filled.dataset.directory, tmp_path / "copy")
    write_shard(copy, "a-new", [synthetic.episode(9)])
    grown = open_dataset(copy)
    (store, _) = features.make_stores(filled.config, grown)
    store.claim("w", {})
    assert [grown.episodes[episode].id for episode in store.missing()] == ["ball-0009"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"segmentation": {"sam_variant": "vit_h"}}, "made with sam_variant 'vit_b', this configuration has 'vit_h'"),
        ({"segmentation": {"feature_grid": 8}}, "made with feature_grid 4, this configuration has 8"),
        ({"geometry": {"layer": 3}}, "geometry_targets was made with layer 23, this configuration has 3"),
        ({"geometry": {"position_embedding": False}}, "position_embedding True, this configuration has False"),
        ({"views": ("wrist", "agentview")}, r"made with views \['agentview', 'wrist'\], this"),
    ],
)
def test_features_of_another_configuration_are_refused(filled, changes, sentence):
    model = filled.config.model
    values = {
        key: dataclasses.replace(getattr(model, key), **value) if isinstance(value, dict) else value
        for key, value in changes.items()
    }
    config = dataclasses.replace(filled.config, model=dataclasses.replace(model, **values))
    with pytest.raises(DataError, match=sentence):
        features.open_stores(config, filled.dataset)


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(AugmentConfig)])
def test_augmented_images_have_no_features_of_their_own(filled, field):
    value = {"crop_area": 0.9, "shift": 2}.get(field, 0.1)
    augment = dataclasses.replace(filled.config.data.augment, **{field: value})
    config = dataclasses.replace(filled.config, data=dataclasses.replace(filled.config.data, augment=augment))
    with pytest.raises(ConfigError, match=rf"data\.augment\.{field} is {value}, and .* set it to [01], or config"):
        features.make_stores(config, filled.dataset)


def test_what_cannot_be_used_is_answered_in_a_sentence(filled, dataset, folder, monkeypatch):
    config = filled.config
    with pytest.raises(DataError, match=r"model\.segmentation\.source 'precomputed' reads .* which holds no features"):
        features.open_stores(config, dataset)
    with pytest.raises(DataError, match=r"'top', .* holds agentview, wrist"):
        features.make_stores(make_config(views=("top",)), dataset)

    opened = open_dataset(folder)
    fill(config, opened)
    (store, _) = features.open_stores(config, opened)
    with pytest.raises(DataError, match="a teacher with weights w, this checkpoint's are v; give the other checkpoint"):
        store.claim("v", {})
    rows = rows_for(store, 0)
    with pytest.raises(DataError, match="numbers that half precision does not hold for episode 'ball-0000'"):
        store.write(0, [rows[0] * np.float16(np.inf)])
    with pytest.raises(DataError, match=f"would hold {len(rows) - 1} rows for {len(rows)} rendered steps"):
        store.write(0, rows[1:])
    with pytest.raises(DataError, match=r"is float32\(2, 4, 4, 8\), it must be float16"):
        store.write(0, [rows[0].astype(np.float32)])

    needed = store.num_bytes(range(6))
    assert needed == sum(path.stat().st_size - 128 for path in store.folder.glob("*.npy"))
    features.check_space({store: list(range(6))})
    monkeypatch.setattr(features.shutil, "disk_usage", lambda _: SimpleNamespace(free=needed - 1))
    with pytest.raises(DataError, match=f"has {needed - 1:,} bytes free .* and the features need {needed:,} "):
        features.check_space({store: list(range(6))})

    path = store.folder / store._file(1)
    path.write_bytes(path.read_bytes()[:-200])
    last = int(store.rows(1)[-1])
    with pytest.raises(DataError, match=f"Features {path} cannot be read: .*; delete the file and run pokevla-feature"):
        store.read(last)
    with pytest.raises(DataError, match=f"Features {path} cannot be read: .* bytes; delete"):
        features.open_stores(config, opened)
    teacher = store.folder / features.TEACHER
    teacher.write_text(json.dumps({**json.loads(teacher.read_text()), "format": 2}))
    with pytest.raises(DataError, match="has format 2, this version reads 1"):
        store.open()
    teacher.write_text("{}")
    with pytest.raises(DataError, match="names no teacher"):
        store.open()
