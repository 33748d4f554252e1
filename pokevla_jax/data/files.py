"""Files that appear whole or not at all."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
