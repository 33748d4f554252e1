"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextlib import suppress
from pathlib import Path
from typing import Any

from array_record.python import array_record_module

from pokevla_jax.data.codec import DataError


def local(directory: str | os.PathLike) -> Path:
    """``directory`` as a path; raises ``DataError`` for a bucket, which must be mounted."""
    if "://" in str(directory):
        raise DataError(
            f"Records are read at random and need a mounted path, got {directory}; mount the bucket (gcsfuse)"
        )
    return Path(directory)


@contextmanager
def temporary(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to write to; what is still there at the end is removed."""
    temp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temp
    finally:
        temp.unlink(missing_ok=True)


class RecordWriter:
    """Writes an ArrayRecord file, as a context.

    Raises:
        DataError: when the disk refuses it: ArrayRecord says so by a ``RuntimeError``, which could be anybody's.
    """

    def __init__(self, path: Path):
        self._path = path
        try:
            # One record per group: a shuffled read then decompresses nothing but its own record.
            self._writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
        except RuntimeError as error:
            raise self._refused(error) from error

    def write(self, record: bytes) -> None:
        """Adds one record."""
        try:
            self._writer.write(record)
        except RuntimeError as error:
            raise self._refused(error) from error

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:  # which says more than a file that is thrown away
            with suppress(RuntimeError):
                self._writer.close()
            return
        try:
            self._writer.close()
        except RuntimeError as error:
            raise self._refused(error) from error

    def _refused(self, error: RuntimeError) -> DataError:
        return DataError(
            f"{self._path.parent} cannot be written ({str(error).partition(';')[0]}); make room there and run the same "
            "command again"
        )


def sync(path: Path) -> None:
    """Flushes a file, or a folder's entries, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Writes a small text file at once."""
    with temporary(path) as temp:
        temp.write_text(text)
        sync(temp)
        os.replace(temp, path)


def write_json(path: Path, values: Any) -> None:
    """Writes readable JSON at once."""
    write_text(path, json.dumps(values, indent=1) + "\n")
