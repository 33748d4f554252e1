"""JSON lists of any length, one element at a time: annotation files of a gigabyte fit into no worker's memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pokevla_jax.data.ingest.base import Reject

_CHUNK = 1 << 20
_MAX_ELEMENT = 64 << 20


def iterate_json(path: Path) -> Iterator[Any]:
    """Yields the elements of a JSON list, or the lines of a ``.jsonl`` file.

    Raises:
        Reject: where the file ends too early or is no JSON; what came before has been yielded.
    """
    with path.open(encoding="utf-8", errors="replace") as file:
        if path.suffix == ".jsonl":
            for number, line in enumerate(file):
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError as error:
                        raise Reject("truncated shard", f"{path.name} line {number + 1}: {error}") from error
            return
        yield from _elements(path, file)


def _elements(path: Path, file: Any) -> Iterator[Any]:
    decoder = json.JSONDecoder()
    buffer, count, begun = "", 0, False
    while True:
        chunk = file.read(_CHUNK)
        buffer += chunk
        position = 0
        while True:
            position = _skip(buffer, position, "," if begun else "")
            if position >= len(buffer):
                break
            if not begun:
                if buffer[position] != "[":
                    raise Reject("malformed", f"{path.name} is not a JSON list")
                begun, position = True, position + 1
                continue
            if buffer[position] == "]":
                return
            try:
                value, end = decoder.raw_decode(buffer, position)
            except ValueError:
                break
            # A number at the chunk's end may go on in the next chunk: only what follows tells.
            if buffer[_skip(buffer, end, "") :][:1] not in (",", "]"):
                break
            yield value
            count, position = count + 1, end
        buffer = buffer[position:]
        if not chunk or len(buffer) > _MAX_ELEMENT:
            raise Reject("truncated shard", f"{path.name} ends, or is no JSON, after element {count}")


def _skip(text: str, position: int, also: str) -> int:
    """The next place that is neither white space nor one of ``also``."""
    while position < len(text) and (text[position].isspace() or text[position] in also):
        position += 1
    return position
