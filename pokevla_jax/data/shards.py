"""What shards of episodes and of conversations share: a table, and the records of the same name beside it."""

import json
import re
from collections.abc import Callable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module

from pokevla_jax.data.codec import DataError

T = TypeVar("T")

MAX_ROWS = 20_000_000
MAX_METADATA_BYTES = 256 << 20

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def checked_name(shard_name: str) -> str:
    """``shard_name``; raises ``DataError`` for one that could leave its folder or hide in it."""
    if not _NAME.fullmatch(shard_name):
        raise DataError(f"Shard name {shard_name!r} may hold letters, digits and _ . - only, at most 100 of them")
    return shard_name


def tables(directory: Path) -> list[Path]:
    """Tables of complete shards in the order of their names; files in progress start with a dot."""
    return sorted(path for path in directory.glob("*.parquet") if _NAME.fullmatch(path.stem))


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turns what Arrow and the disk say of a table that cannot be read into a ``DataError``."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"Table {path} cannot be read: {str(error)[:200]}; restore it from a copy or delete it"
        ) from error


@contextmanager
def opened(path: Path) -> Iterator[pq.ParquetFile]:
    """A shard's table, of which nothing but its metadata is in memory yet.

    Raises:
        DataError: when it cannot be read, or says of itself that it is larger than any shard is.
    """
    with reading(path), pq.ParquetFile(path, thrift_string_size_limit=MAX_METADATA_BYTES) as file:
        rows = file.metadata.num_rows
        if rows > MAX_ROWS:
            raise DataError(f"Table {path} states {rows} rows, more than the limit of {MAX_ROWS}; split the shard")
        yield file


def parse_header(
    metadata: Mapping[bytes, bytes] | None,
    path: Path,
    *,
    key: bytes,
    version: int,
    types: Mapping[str, Any],
    foreign: str,
    remedy: str = "",
) -> dict[str, Any]:
    """The header in a table's metadata.

    Args:
        metadata: of the table's schema.
        path: the table, for messages.
        key: where the header lies.
        version: of the format that is read.
        types: of the header's values, as ``isinstance`` takes them.
        foreign: what a table without a header is not, and what to do about it.
        remedy: what to do about another version, if anything.

    Raises:
        DataError: when the table is not a shard of this kind and format.
    """
    if not metadata or key not in metadata:
        raise DataError(f"Table {path} is not {foreign}")
    try:
        header = json.loads(metadata[key])
    except ValueError as error:
        raise DataError(f"Table {path} has a broken header ({error}); restore it from a copy or delete it") from error
    found = header.get("format") if isinstance(header, dict) else None
    if found != version:
        raise DataError(f"Table {path} has format {found!r}, this version reads {version}{remedy and f'; {remedy}'}")
    for name, kind in types.items():
        if not isinstance(header.get(name), kind):
            raise DataError(f"Table {path} has no valid {name!r} in its header; restore it from a copy or delete it")
    return header


def check_records(table: Path, header: Mapping[str, Any]) -> None:
    """Raises ``DataError`` unless the records beside ``table`` are as long as its header says."""
    records = table.with_suffix(".arrayrecord")
    size = records.stat().st_size if records.is_file() else None
    if size != header["records_bytes"]:
        found = "is missing" if size is None else f"has {size} bytes"
        raise DataError(
            f"Records file {records} {found}, its table expects {header['records_bytes']}; restore it from a copy, or "
            f"delete {table.name} and manifest.json to go on without the shard"
        )


class RecordFiles:
    """The records of a folder's shards; safe to pickle and to read from several threads.

    Args:
        directory: the folder.
        shards: their names, in order.
        listing: the file that lists the shards beside their tables, if any does.
    """

    def __init__(self, directory: Path, shards: Sequence[str], listing: str | None = None):
        self._directory, self._shards, self._listing = directory, tuple(shards), listing
        self._readers: dict[int, Any] = {}

    def __getstate__(self) -> dict:
        # Open files do not travel to worker processes; each opens its own.
        return {**self.__dict__, "_readers": {}}

    def path(self, shard: int) -> Path:
        """The file of a shard, an index into ``shards``."""
        return self._directory / f"{self._shards[shard]}.arrayrecord"

    def read(self, shard: int, record: int, decode: Callable[[bytes], T]) -> T:
        """What ``decode`` makes of entry ``record`` of a shard; raises ``DataError`` where it cannot be read."""
        path = self.path(shard)
        try:
            if shard not in self._readers:
                # Without read-ahead: access is random.
                self._readers[shard] = array_record_module.ArrayRecordReader(str(path), "readahead_buffer_size:0")
            (data,) = self._readers[shard].read([int(record)])
            return decode(data)
        except (RuntimeError, ValueError, IndexError) as error:
            tables = f"{path.stem}.parquet" + (f" and {self._listing}" if self._listing else "")
            raise DataError(
                f"Record {record} of {path} cannot be read: {str(error)[:200]}; restore the shard from a copy, or "
                f"delete {tables} to go on without it"
            ) from error
