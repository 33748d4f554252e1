"""Image-text samples on disk: a random-access file of conversations and a table of their lengths per shard.

``<shard>.arrayrecord`` holds one msgpack map per sample (JPEG images as they came, the turns as text); beside it
``<shard>.parquet`` holds one row per sample with what order and packing need: source, pillar, split, images and token
counts. As with episodes (``records``), a shard exists when its parquet file does, nothing is overwritten, and several
processes may write different shards of one folder at a time. See docs/data_formats.md.
"""

import json
import os
import re
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any
from typing import Literal

import msgpack
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pokevla_jax.data import files
from pokevla_jax.data import hashing
from pokevla_jax.data import manifest as manifests
from pokevla_jax.data import shards
from pokevla_jax.data.codec import MAX_ENTRY_BYTES
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import decode_jpeg
from pokevla_jax.data.codec import jpeg_size
from pokevla_jax.data.tokenize import QwenTokenizer
from pokevla_jax.data.tokenize import Tokenizer
from pokevla_jax.data.tokenize import check_text
from pokevla_jax.data.tokenize import count_words
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Int
from pokevla_jax.typing import UInt8

FORMAT = 1
"""Version of the sample entry and of the shard; others are refused by name."""
METADATA_KEY = b"pokevla_corpus"
PILLARS = ("general", "grounding", "affordance", "reasoning")
"""The four parts of the paper's pre-training corpus."""
SPLITS = ("train", "holdout")

SOURCE_NAME = re.compile(r"[a-z0-9][a-z0-9_]{0,49}")
_MAX_TEXT = 1 << 20
_MAX_IMAGES = 64
_MAX_TURNS = 1000


@dataclass(frozen=True, kw_only=True)
class CorpusSample:
    """One conversation about zero or more images.

    Attributes:
        id: unique within its source.
        source: the data set it comes from; lower case, digits, ``_``.
        pillar: one of ``PILLARS``.
        images: JPEG files, RGB or grey, in the order in which the model sees them.
        turns: question, answer, question, ...; an even number of texts, no answer empty. ``<image>`` marks are removed.
        split: "holdout" is never trained on.
        labels: what an evaluation needs beyond the answer (a mask, boxes, the question's type), plain msgpack types.
    """

    id: str
    source: str
    pillar: str
    images: tuple[bytes, ...]
    turns: tuple[str, ...]
    split: Literal["train", "holdout"] = "train"
    labels: Mapping[str, Any] = field(default_factory=dict)


def check_sample(sample: CorpusSample) -> None:
    """Raises ``DataError`` for what no network could learn from, saying what it is."""
    if not SOURCE_NAME.fullmatch(sample.source) or sample.pillar not in PILLARS:
        raise DataError(f"has source {sample.source!r} and pillar {sample.pillar!r}; pillars: {', '.join(PILLARS)}")
    if not sample.id or len(sample.id) > 500 or sample.split not in SPLITS:
        raise DataError(f"has id {sample.id[:80]!r} and split {sample.split!r}, which are not usable")
    if not sample.turns or len(sample.turns) % 2:
        raise DataError(f"has {len(sample.turns)} turns; questions and answers must alternate")
    if len(sample.turns) > _MAX_TURNS or sum(map(len, sample.turns)) > _MAX_TEXT:
        raise DataError(f"has {len(sample.turns)} turns of {sum(map(len, sample.turns))} characters, too many")
    for index, text in enumerate(sample.turns):
        if not text.strip():
            raise DataError(f"has an empty {('question', 'answer')[index % 2]} (turn {index})")
        check_text(text)
    if len(sample.images) > _MAX_IMAGES:
        raise DataError(f"has {len(sample.images)} images, more than {_MAX_IMAGES}")
    for index, image in enumerate(sample.images):
        if jpeg_size(image) is None:
            raise DataError(f"image {index} is not a JPEG file")


def encode_sample(sample: CorpusSample) -> bytes:
    """Serialises a sample without loss."""
    entry = {
        "format": FORMAT,
        "id": sample.id,
        "source": sample.source,
        "pillar": sample.pillar,
        "split": sample.split,
        "images": list(sample.images),
        "turns": list(sample.turns),
        "labels": dict(sample.labels),
    }
    return msgpack.packb(entry)


def decode_sample(data: bytes) -> CorpusSample:
    """The inverse of ``encode_sample``; raises ``DataError`` for anything else."""
    if len(data) > MAX_ENTRY_BYTES:
        raise DataError(f"holds {len(data)} bytes, more than the limit of {MAX_ENTRY_BYTES}")
    try:
        entry = msgpack.unpackb(data, max_str_len=_MAX_TEXT, max_array_len=1 << 20, max_map_len=1 << 12)
        if entry["format"] != FORMAT:
            raise DataError(f"has sample format {entry['format']!r}, this version reads {FORMAT}")
        return CorpusSample(
            **{name: entry[name] for name in ("id", "source", "pillar", "split", "labels")},
            images=tuple(entry["images"]),
            turns=tuple(entry["turns"]),
        )
    except (KeyError, TypeError, ValueError, msgpack.UnpackException) as error:
        raise error if isinstance(error, DataError) else DataError(f"is not a sample ({error!r})") from error


def decode_image(sample: CorpusSample, index: int) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of one image, RGB."""
    return decode_jpeg(sample.images[index], f"image {index} of sample {sample.id!r}")


# --- writing ---


def write_corpus_shard(
    directory: str | os.PathLike,
    shard_name: str,
    samples: Iterable[CorpusSample],
    *,
    settings: Mapping[str, Any] | None = None,
    tokenizer: Tokenizer | None = None,
) -> dict[str, Any]:
    """Writes one shard, which appears whole or not at all; returns its header.

    Args:
        directory: the corpus's folder; created when missing. Shards of several sources may lie in one.
        shard_name: letters, digits, ``_ . -``; must be new.
        samples: consumed once, one at a time.
        settings: how the samples were made (licence, seed, options), plain JSON; kept in the manifest.
        tokenizer: Qwen2.5's, if the corpus is to be trained with it: lengths are counted now, so that packs need no
            text. Lengths under a compact vocabulary are always stored.

    Raises:
        FileExistsError: when the shard exists.
        DataError: when a sample cannot be used.
    """
    directory = files.local(directory)
    table_path = directory / f"{shards.checked_name(shard_name)}.parquet"
    if table_path.exists():
        raise FileExistsError(f"Shard {table_path} exists; choose another name or delete it first")
    directory.mkdir(parents=True, exist_ok=True)
    records_path = directory / f"{shard_name}.arrayrecord"
    qwen = tokenizer if isinstance(tokenizer, QwenTokenizer) else None
    columns: dict[str, list] = {name: [] for name in _SCHEMA.names}
    with files.temporary(records_path) as records_temp, files.temporary(table_path) as table_temp:
        with files.RecordWriter(records_temp) as writer:
            for sample in samples:
                try:
                    check_sample(sample)
                except DataError as error:
                    raise DataError(f"Sample {sample.id!r} of {sample.source!r} {error}") from error
                writer.write(encode_sample(sample))
                row = {name: getattr(sample, name) for name in ("id", "source", "pillar", "split")}
                row |= {"num_images": len(sample.images), "words": count_words(sample.turns)}
                row["tokens"] = len(qwen.encode_conversation(sample.turns)[0]) if qwen else -1
                for name, value in row.items():
                    columns[name].append(value)
        files.sync(records_temp)
        table = pa.table(columns, schema=_SCHEMA)
        header = {
            "format": FORMAT,
            "num_samples": len(table),
            "counts": _counts(table),
            "records_bytes": records_temp.stat().st_size,
            "records_sha256": manifests.sha256(records_temp),
            "tokenizer": qwen.fingerprint() if qwen else None,
            "settings": dict(settings or {}),
        }
        pq.write_table(
            table.replace_schema_metadata({METADATA_KEY: json.dumps(header)}), table_temp, compression="zstd"
        )
        files.sync(table_temp)
        os.replace(records_temp, records_path)
        os.replace(table_temp, table_path)
    files.sync(directory)
    return header


_TEXT = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("source", _TEXT),
        ("pillar", _TEXT),
        ("split", _TEXT),
        ("num_images", pa.int32()),
        # Text tokens under any compact vocabulary, and under the tokenizer of the header (-1: not counted).
        ("words", pa.int32()),
        ("tokens", pa.int32()),
    ]
)


_HEADER_TYPES: dict[str, Any] = {
    "num_samples": int,
    "counts": list,
    "records_bytes": int,
    "records_sha256": str,
    "tokenizer": (str, type(None)),
    "settings": dict,
}


def _counts(table: pa.Table) -> list[dict[str, Any]]:
    """Samples and images per source, pillar and split."""
    plain = table.select(["source", "pillar", "split", "num_images"]).to_pydict()
    counts: dict[tuple[str, str, str], list[int]] = {}
    for source, pillar, split, images in zip(*plain.values(), strict=True):
        entry = counts.setdefault((source, pillar, split), [0, 0])
        entry[0] += 1
        entry[1] += images
    return [
        {"source": source, "pillar": pillar, "split": split, "samples": samples, "images": images}
        for (source, pillar, split), (samples, images) in sorted(counts.items())
    ]


# --- reading ---


class Corpus:
    """A corpus with its table in memory and its samples on disk; safe to pickle and to read from several threads.

    Attributes:
        headers: per shard, in order, what ``write_corpus_shard`` returned.
        ids: sample ids; sample ``i`` is row ``i`` of every column.
        source, pillar: index of each sample's source and pillar in ``sources`` and ``PILLARS``.
        holdout: whether a sample is kept out of training.
        num_images, words: images and text tokens (compact vocabulary) of each sample.
    """

    def __init__(self, directory: Path, headers: Mapping[str, dict], tables: Sequence[pa.Table]):
        self.directory = directory
        self.shards = tuple(headers)
        self.headers = tuple(headers.values())
        table = pa.concat_tables([table.cast(_PLAIN) for table in tables])
        self.ids = table["id"].combine_chunks()
        names, self.source = np.unique(np.asarray(table["source"]), return_inverse=True)
        self.sources = tuple(map(str, names))
        order = {name: index for index, name in enumerate(PILLARS)}
        self.pillar = np.array([order[name] for name in table["pillar"].to_pylist()], np.int32)
        self.holdout = np.asarray(table["split"]) == "holdout"
        self.num_images, self.words, self._tokens = (
            table[name].to_numpy().astype(np.int32) for name in ("num_images", "words", "tokens")
        )
        self._starts = np.cumsum([0, *(header["num_samples"] for header in self.headers)])
        self._records = shards.RecordFiles(directory, self.shards)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> CorpusSample:
        """Sample ``index``; raises ``DataError`` naming file and record where it cannot be read."""
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return self._records.read(shard, int(index - self._starts[shard]), decode_sample)

    def held_out(self, fraction: float) -> Bool[np.ndarray, " n"]:
        """Which samples are kept out of training: those whose source says so.

        Of a source that says nothing, those whose hashed id falls below ``fraction``: adding data moves none.
        """
        chosen = self.holdout.copy()
        silent = ~np.isin(self.source, np.unique(self.source[chosen]))
        if fraction > 0:
            for index in np.flatnonzero(silent):
                name = f"{self.sources[self.source[index]]}/{self.ids[int(index)].as_py()}"
                chosen[index] = hashing.uniform(name) < fraction
        return chosen

    def text_lengths(self, tokenizer: Tokenizer) -> Int[np.ndarray, " n"]:
        """Text tokens of every sample under ``tokenizer``.

        Raises:
            DataError: when the corpus was ingested without this tokenizer.
        """
        if not isinstance(tokenizer, QwenTokenizer):
            return self.words
        fingerprint = tokenizer.fingerprint()
        for name, header in zip(self.shards, self.headers, strict=True):
            if header["tokenizer"] != fingerprint:
                raise DataError(
                    f"Shard {name} of {self.directory} was ingested without the tokenizer {tokenizer.path}; ingest it "
                    "again with --tokenizer"
                )
        return self._tokens


_PLAIN = pa.schema(
    [(name, pa.string() if _SCHEMA.field(name).type == _TEXT else _SCHEMA.field(name).type) for name in _SCHEMA.names]
)


def open_corpus(directory: str | os.PathLike) -> Corpus:
    """Opens a corpus, checking that its shards are whole.

    Raises:
        FileNotFoundError: when there is none.
        DataError: for a truncated or foreign shard, naming it.
    """
    directory = files.local(directory)
    paths = shards.tables(directory)
    if not paths:
        raise FileNotFoundError(
            f"Corpus folder {directory} holds no complete shard (*.parquet); make one with pokevla-ingest"
        )
    headers, tables = {}, []
    for path in paths:
        headers[path.stem], table = read_shard(path)
        tables.append(table)
    return Corpus(directory, headers, tables)


def read_shard(path: Path) -> tuple[dict[str, Any], pa.Table]:
    """Header and table of one shard, checked against the size of its records.

    Raises:
        DataError: when they are not a shard of this format, or damaged.
    """
    with shards.opened(path) as file:
        header = shards.parse_header(
            file.schema_arrow.metadata,
            path,
            key=METADATA_KEY,
            version=FORMAT,
            types=_HEADER_TYPES,
            foreign="a shard of conversations; move it out of the corpus's folder",
        )
        names, rows = file.schema_arrow.names, file.metadata.num_rows
        if names != _SCHEMA.names or rows != header["num_samples"]:
            raise DataError(f"Table {path} has other columns or rows than its header says; restore it from a copy")
        table = file.read().cast(_PLAIN)
    _check_columns(table, path)
    shards.check_records(path, header)
    return header, table


def _check_columns(table: pa.Table, path: Path) -> None:
    """Raises ``DataError`` for values that no shard of this format has."""
    for name in table.column_names:
        column = table[name]
        known = {"pillar": PILLARS, "split": SPLITS}.get(name)
        if column.null_count:
            wrong = "has gaps in it"
        elif known and not set(column.unique().to_pylist()) <= set(known):
            wrong = f"has values other than {', '.join(known)}"
        elif pa.types.is_integer(column.type) and len(column) and pc.min(column).as_py() < -1:
            wrong = "has negative values"
        else:
            continue
        raise DataError(f"Column {name!r} of {path} {wrong}; restore the shard from a copy or delete it")
