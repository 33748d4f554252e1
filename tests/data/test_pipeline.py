import dataclasses
import shutil

import numpy as np
import pytest

from pokevla_jax.config import AugmentConfig
from pokevla_jax.config import GeometryConfig
from pokevla_jax.config import KeypointConfig
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.normalize import normalize
from pokevla_jax.data.pipeline import holdout_batches
from pokevla_jax.data.pipeline import sample_rows
from pokevla_jax.data.pipeline import train_iterator
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.records import write_shard
from pokevla_jax.data.schema import batch_spec
from tests.data import synthetic

STEPS = 8


@pytest.fixture(scope="module")
def config():
    return synthetic.config(augment=AugmentConfig(), holdout_fraction=0.2)


@pytest.fixture(scope="module")
def reference(config, dataset, statistics, tokenizer):
    """The first steps of an uninterrupted run of one process."""
    iterator = train_iterator(config, dataset, statistics, tokenizer)
    batches = [next(iterator) for _ in range(STEPS)]
    iterator.close()
    return batches


def assert_same(batch, expected):
    assert set(batch) == set(expected)
    for key in expected:
        np.testing.assert_array_equal(batch[key], expected[key], err_msg=key)


def rows_of(batch, dataset, statistics):
    """The table rows that the samples were made of, recognised by their state."""
    known = {normalize(state, statistics.state).tobytes(): row for row, state in enumerate(dataset.state)}
    return [known[proprio.tobytes()] for proprio in batch["proprio"]]


@pytest.mark.parametrize("process_count", [1, 2, 4])
@pytest.mark.parametrize("start", [0, 1, 5])
def test_neither_processes_nor_a_restart_change_a_step(
    config, dataset, statistics, tokenizer, reference, process_count, start
):
    iterators = [
        train_iterator(
            config, dataset, statistics, tokenizer, process_index=i, process_count=process_count, start_step=start
        )
        for i in range(process_count)
    ]
    for expected in reference[start : start + 3]:
        parts = [next(iterator) for iterator in iterators]
        assert_same({key: np.concatenate([part[key] for part in parts]) for key in parts[0]}, expected)
    for iterator in iterators:
        iterator.close()


@pytest.mark.multiprocess
def test_worker_processes_change_nothing(config, dataset, statistics, tokenizer, reference):
    data = dataclasses.replace(config.data, num_workers=2)
    iterator = train_iterator(
        dataclasses.replace(config, data=data), dataset, statistics, tokenizer, process_index=1, process_count=2
    )
    for expected in reference[:3]:
        assert_same(next(iterator), {key: value[4:] for key, value in expected.items()})
    # The position saved with workers continues without them.
    plain = train_iterator(config, dataset, statistics, tokenizer, process_index=1, process_count=2)
    plain.set_state(iterator.get_state())
    assert_same(next(plain), {key: value[4:] for key, value in reference[3].items()})
    iterator.close()
    plain.close()


def test_the_state_is_the_position_that_the_consumer_reached(config, dataset, statistics, tokenizer, reference):
    iterator = train_iterator(config, dataset, statistics, tokenizer)
    next(iterator)
    next(iterator)
    state = iterator.get_state()
    assert state["step"] == 2
    next(iterator)
    iterator.set_state(state)
    assert_same(next(iterator), reference[2])
    iterator.close()


@pytest.mark.parametrize("change", [{"seed": 6}, {"batch_size": 4}])
def test_a_position_of_another_run_is_refused(config, dataset, statistics, tokenizer, change):
    state = train_iterator(config, dataset, statistics, tokenizer).get_state()
    other = train_iterator(dataclasses.replace(config, **change), dataset, statistics, tokenizer)
    with pytest.raises(DataError, match=f"saved data position has {next(iter(change))}"):
        other.set_state(state)


def test_every_epoch_shows_every_sample_once_in_another_order(config, dataset, statistics, tokenizer):
    rows = sample_rows(config, dataset, "train")
    config = dataclasses.replace(config, batch_size=len(rows))
    iterator = train_iterator(config, dataset, statistics, tokenizer)
    first, second = next(iterator), next(iterator)
    iterator.close()
    orders = [rows_of(batch, dataset, statistics) for batch in (first, second)]
    assert sorted(orders[0]) == sorted(orders[1]) == rows.tolist()
    assert orders[0] != orders[1]
    assert orders[0] != rows.tolist()
    # The same sample is augmented anew.
    place = orders[1].index(orders[0][0])
    assert (first["images"][0] != second["images"][place]).any()


def test_the_seed_changes_the_order(config, dataset, statistics, tokenizer, reference):
    iterator = train_iterator(dataclasses.replace(config, seed=6), dataset, statistics, tokenizer)
    assert rows_of(next(iterator), dataset, statistics) != rows_of(reference[0], dataset, statistics)
    iterator.close()


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"keypoint": KeypointConfig(weight=0)},
        {"geometry": GeometryConfig(weight=0, teacher="depth")},
        {"segmentation": dataclasses.replace(synthetic.config().model.segmentation, weight=0.0)},
        {"views": ("wrist",)},
    ],
)
def test_batches_are_those_of_the_specification(config, dataset, statistics, tokenizer, parts):
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, **parts))
    iterator = train_iterator(config, dataset, statistics, tokenizer)
    for batch in (next(iterator), next(holdout_batches(config, dataset, statistics, tokenizer))):
        spec = batch_spec(config, config.batch_size)
        assert {key: (value.shape, value.dtype) for key, value in batch.items()} == {
            key: tuple(entry) for key, entry in spec.items()
        }
    iterator.close()


def test_held_out_episodes_are_never_trained_on(config, dataset):
    train, held = (set(dataset.episode[sample_rows(config, dataset, split)]) for split in ("train", "holdout"))
    assert train
    assert held
    assert not train & held
    assert train | held == set(range(6))
    assert len(sample_rows(synthetic.config(holdout_fraction=0.0), dataset, "holdout")) == 0


def test_the_split_of_an_episode_survives_new_data(config, dataset, tmp_path):
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, holdout_fraction=0.4))
    before = {dataset.episodes[e].id for e in dataset.episode[sample_rows(config, dataset, "holdout")]}
    folder = shutil.copytree(dataset.directory, tmp_path / "more")
    write_shard(folder, "more", [synthetic.episode(n) for n in range(20, 26)])
    grown = open_dataset(folder)
    after = {grown.episodes[e].id for e in grown.episode[sample_rows(config, grown, "holdout")]}
    assert after & {info.id for info in dataset.episodes} == before


def test_held_out_batches_show_each_sample_once_whatever_the_process_count(config, dataset, statistics, tokenizer):
    rows = sample_rows(config, dataset, "holdout")
    batches = list(holdout_batches(config, dataset, statistics, tokenizer))
    assert len(batches) == -(-len(rows) // config.batch_size)
    seen = np.concatenate([rows_of(batch, dataset, statistics) for batch in batches])
    np.testing.assert_array_equal(seen[: len(rows)], rows)
    labelled = np.concatenate([batch["action_mask"].any(1) for batch in batches])
    np.testing.assert_array_equal(labelled, np.arange(len(labelled)) < len(rows))
    filled = {key: batches[-1][key][-1] for key in ("mask_valid", "points_valid", "keypoints_valid")}
    assert len(rows) % config.batch_size
    assert not any(value.any() for value in filled.values())
    parts = (
        holdout_batches(config, dataset, statistics, tokenizer, process_index=index, process_count=2)
        for index in range(2)
    )
    for batch, *split in zip(batches, *parts, strict=True):
        assert_same({key: np.concatenate([part[key] for part in split]) for key in batch}, batch)


def test_few_held_out_batches_are_spread_over_all(config, dataset, statistics, tokenizer):
    config = dataclasses.replace(config, batch_size=2, data=dataclasses.replace(config.data, holdout_fraction=0.5))
    rows = sample_rows(config, dataset, "holdout")
    (batch,) = holdout_batches(config, dataset, statistics, tokenizer, max_batches=1)
    assert rows_of(batch, dataset, statistics) == [rows[0], rows[len(rows) // 2]]


def test_samples_are_rendered_steps_with_a_label(tmp_path):
    info, frames = synthetic.episode(0, every=1)
    ends = info.chunk_end.copy()
    ends[3] = 3
    action = info.action.copy()
    action[12:14, :6] = 0
    del frames[7]
    write_shard(tmp_path, "a", [(dataclasses.replace(info, chunk_end=ends, action=action), frames)])
    dataset = open_dataset(tmp_path)

    def rows(**data):
        return set(sample_rows(synthetic.config(holdout_fraction=0.0, **data), dataset, "train").tolist())

    everything = set(range(20))
    assert rows() == everything - {3, 7}
    assert rows(drop_tail=True) == set(range(13)) - {3, 7}
    assert rows(drop_noops=True) == everything - {3, 7, 12, 13}


def test_what_does_not_fit_is_answered_in_a_sentence(config, dataset, statistics, tokenizer):
    def start(model=None, **changes):
        model = dataclasses.replace(config.model, **(model or {}))
        train_iterator(dataclasses.replace(config, model=model, **changes), dataset, statistics, tokenizer)

    with pytest.raises(DataError, match=r"'top', .* holds agentview, wrist"):
        start({"views": ("top", "wrist")})
    with pytest.raises(DataError, match=r"states of 8 numbers; set config\.model\.proprio_dim to 8"):
        start({"proprio_dim": 9})
    with pytest.raises(DataError, match=r"actions of 7 numbers; set config\.model\.action_dim to 7"):
        start({"action_dim": 8})
    with pytest.raises(DataError, match="vocab_size is 4; raise it to at least"):
        start({"language": dataclasses.replace(config.model.language, vocab_size=4)})
    with pytest.raises(DataError, match="holds no training sample"):
        start(data=dataclasses.replace(config.data, holdout_fraction=1.0))
    with pytest.raises(DataError, match="8 does not divide over 3 processes; nearest: 6"):
        train_iterator(config, dataset, statistics, tokenizer, process_count=3)
    with pytest.raises(DataError, match="8 does not divide over 3 processes"):
        next(holdout_batches(config, dataset, statistics, tokenizer, process_count=3))
    keypoint = KeypointConfig(weight=1.0, num_keypoints=3)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, keypoint=keypoint))
    with pytest.raises(DataError, match="num_keypoints is 3, the dataset stores 2"):
        next(holdout_batches(config, dataset, statistics, tokenizer))


def test_a_broken_record_stops_the_run_and_is_named(config, dataset, statistics, tokenizer, tmp_path):
    folder = shutil.copytree(dataset.directory, tmp_path / "copy")
    path = folder / "shard-0.arrayrecord"
    content = bytearray(path.read_bytes())
    content[:] = content[:200] + bytes(len(content) - 200)
    path.write_bytes(content)
    broken = open_dataset(folder)
    assert broken.shards[broken.shard[0]] == "shard-0"
    iterator = train_iterator(dataclasses.replace(config, batch_size=40), broken, statistics, tokenizer)
    with pytest.raises(DataError, match=f"Record .* of {path} cannot be read"):
        next(iterator)
