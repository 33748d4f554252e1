import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pokevla_jax.data import shards
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.corpus import METADATA_KEY
from pokevla_jax.data.corpus import check_sample
from pokevla_jax.data.corpus import decode_image
from pokevla_jax.data.corpus import decode_sample
from pokevla_jax.data.corpus import encode_sample
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.data.corpus import write_corpus_shard
from tests.data import corpora


def test_samples_come_back_as_they_were(tmp_path):
    corpora.write(tmp_path)
    corpus = open_corpus(tmp_path)
    expected = [corpora.sample(n) for shard in range(3) for n in range(shard, 60, 3)]
    assert [corpus[i] for i in range(len(corpus))] == expected
    assert corpus.ids.to_pylist() == [sample.id for sample in expected]
    assert corpus.sources == ("alpha", "beta", "gamma")
    np.testing.assert_array_equal(corpus.holdout, [sample.split == "holdout" for sample in expected])
    np.testing.assert_array_equal(corpus.num_images, [len(sample.images) for sample in expected])
    counts = {}
    for header in corpus.headers:
        for row in header["counts"]:
            counts[row["source"]] = counts.get(row["source"], 0) + row["samples"]
    assert counts == {"alpha": 20, "beta": 20, "gamma": 20}


def test_images_keep_size_and_colour():
    sample = corpora.sample(5)
    np.testing.assert_allclose(decode_image(sample, 1)[7, 9], corpora.color_of(6), atol=3)
    assert decode_image(sample, 1).shape == (20, 30, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"turns": ("q", " ")}, "empty answer"),
        ({"turns": ("q",)}, "must alternate"),
        ({"turns": ()}, "must alternate"),
        ({"turns": ("q <|im_end|>", "a")}, "control token"),
        ({"pillar": "fun"}, "pillars: general"),
        ({"source": "A B"}, "source 'A B'"),
        ({"images": (b"\x89PNG",)}, "image 0 is not a JPEG"),
        ({"split": "test"}, "split 'test'"),
    ],
)
def test_what_cannot_be_learned_from_is_refused(change, message, tmp_path):
    with pytest.raises(DataError, match=message):
        check_sample(corpora.sample(4, **change))
    with pytest.raises(DataError, match=f"Sample 's0004'.*{message}"):
        write_corpus_shard(tmp_path, "a", [corpora.sample(4, **change)])
    assert not list(tmp_path.iterdir())


def test_entries_from_elsewhere_are_refused():
    data = encode_sample(corpora.sample(2))
    assert decode_sample(data) == corpora.sample(2)
    for broken in (b"", data[:40], b"\x93\x01\x02\x03", data.replace(b"\xa6format\x01", b"\xa6format\x02")):
        with pytest.raises(DataError):
            decode_sample(broken)


def test_damage_is_named(tmp_path):
    folder = corpora.write(tmp_path / "a")
    records = folder / "shard-1.arrayrecord"
    whole = records.read_bytes()
    records.write_bytes(whole[:-10])
    with pytest.raises(DataError, match=r"shard-1\.arrayrecord has"):
        open_corpus(folder)
    records.write_bytes(whole[:200] + bytes(len(whole) - 200))
    corpus = open_corpus(folder)
    with pytest.raises(DataError, match=r"Record .* of .*shard-1\.arrayrecord"):
        [corpus[i] for i in range(20, 40)]
    with pytest.raises(FileExistsError):
        write_corpus_shard(folder, "shard-0", [corpora.sample(1)])
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="pokevla-ingest"):
        open_corpus(folder)


def rewritten(path, change=lambda table: table, **header):
    """The shard's table with some columns changed and some of its header; None removes a key."""
    table = pq.read_table(path)
    values = json.loads(table.schema.metadata[METADATA_KEY]) | header
    values = {key: value for key, value in values.items() if value is not None}
    pq.write_table(change(table).replace_schema_metadata({METADATA_KEY: json.dumps(values)}), path)


def replaced(name, values, kind):
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values, kind))


@pytest.mark.parametrize(
    ("change", "header", "message"),
    [
        (lambda table: table, {"records_bytes": "many"}, "no valid 'records_bytes'"),
        (lambda table: table, {"num_samples": None}, "no valid 'num_samples'"),
        (lambda table: table.slice(1), {}, "other columns or rows"),
        (replaced("pillar", ["fun"] * 20, pa.string()), {}, "'pillar' of .* has values other than general"),
        (replaced("split", ["train", None] * 10, pa.string()), {}, "'split' of .* has gaps"),
        (replaced("words", [-5] * 20, pa.int32()), {}, "'words' of .* has negative values"),
        (replaced("words", ["five"] * 20, pa.string()), {}, "cannot be read: .*five"),
    ],
)
def test_tables_from_elsewhere_are_refused(tmp_path, change, header, message):
    folder = corpora.write(tmp_path)
    open_corpus(folder)
    rewritten(folder / "shard-1.parquet", change, **header)
    with pytest.raises(DataError, match=rf"shard-1\.parquet.*{message}|Column {message}"):
        open_corpus(folder)


def test_a_table_that_would_fill_the_memory_is_refused(tmp_path, monkeypatch):
    """By what its metadata says, before its columns are read."""
    folder = corpora.write(tmp_path)
    monkeypatch.setattr(shards, "MAX_ROWS", 19)
    with pytest.raises(DataError, match=r"shard-0\.parquet states 20 rows, more than the limit of 19"):
        open_corpus(folder)
    monkeypatch.setattr(shards, "MAX_ROWS", 20)
    open_corpus(folder)
    monkeypatch.setattr(shards, "MAX_METADATA_BYTES", 1000)
    rewritten(folder / "shard-0.parquet", padding="x" * 2000)
    with pytest.raises(DataError, match=r"shard-0\.parquet cannot be read"):
        open_corpus(folder)
