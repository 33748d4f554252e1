"""MolmoAct: where the gripper goes next, drawn on the picture, from the parquet files of its training mixtures.

The layout that is read (the columns of the mid-training mixture; others are ignored)::

    DATA/**/*.parquet
        primary        {"bytes": JPEG or PNG, "path": ...}, the third-person view
        wrist          the same, optional
        conversations  {"from": [...], "value": [...]} or a list of {"from", "value"}; the first question holds
                       "The task is <task>."
        annotation     text "[[x, y], ...]": the gripper's way in the primary view, in 1 to 256

One question is made of it: the points of the way, as fractions of the image ((v - 1) / 255).
"""

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pokevla_jax.data.corpus import CorpusSample
from pokevla_jax.data.ingest import base
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.grounding import format_points
from pokevla_jax.data.ingest.grounding import valid_points
from pokevla_jax.data.ingest.images import to_jpeg

_COLUMNS = ("primary", "wrist", "conversations", "annotation")
_TASK = re.compile(r"[Tt]he task is (.+?)\.(?:\s|$)", re.DOTALL)
_QUESTION = (
    "The task is {task}. Which way will the gripper go? Answer with a list of (x, y), in fractions of the image."
)


@dataclass(frozen=True)
class MolmoActAdapter:
    """Reads every parquet file below the folder."""

    source: str
    pillar: str
    licence: str
    size: int | None = None

    def settings(self) -> dict[str, Any]:
        return {"adapter": "molmoact", **asdict(self)}

    def inputs(self, data: Path) -> list[Path]:
        return base.found(sorted(data.glob("**/*.parquet")), f"{data}/**/*.parquet")

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        for path in self.inputs(data):
            name = path.relative_to(data).as_posix()
            try:
                metadata = pq.read_metadata(path)
            except (pa.ArrowException, OSError) as error:
                yield Rejection(f"{name}/0...", "truncated shard", f"{name}: {str(error)[:200]}")
                continue
            for group in range(metadata.num_row_groups):
                for row in range(metadata.row_group(group).num_rows):
                    yield Reference(f"{name}/{group}/{row}", (name, group, row))

    def load(self, data: Path, reference: Reference) -> CorpusSample:
        name, group, index = reference.payload
        row = read_row(data / name, group, index)
        picture = row.get("primary")
        if not isinstance(picture, dict) or not isinstance(picture.get("bytes"), bytes):
            raise Reject("missing image", "the row has no primary view")
        try:
            points = json.loads(row.get("annotation") or "")
            pairs = [(float(x), float(y)) for x, y in points]
        except (TypeError, ValueError) as error:
            raise Reject("malformed", f"annotation {row.get('annotation')!r} is no list of points") from error
        valid = valid_points([((x - 1) / 255, (y - 1) / 255) for x, y in pairs])
        if not valid:
            raise Reject("point outside", f"no point of {pairs} lies between 1 and 256")
        task = _TASK.search(_first_question(row.get("conversations")))
        if task is None:
            raise Reject("malformed", "the first question names no task")
        image, _ = to_jpeg(picture["bytes"], "primary view", size=self.size)
        turns = (_QUESTION.format(task=task[1].strip()), format_points(valid))
        return CorpusSample(id=reference.id, source=self.source, pillar=self.pillar, images=(image,), turns=turns)


def _first_question(conversations: Any) -> str:
    if isinstance(conversations, dict):
        values = conversations.get("value") or [""]
        return str(values[0])
    if isinstance(conversations, list) and conversations and isinstance(conversations[0], dict):
        return str(conversations[0].get("value", ""))
    return ""


def read_row(path: Path, group: int, index: int) -> dict[str, Any]:
    """One row of a row group; neighbours come from memory."""
    try:
        return _read_group(path, group).slice(index, 1).to_pylist()[0]
    except (pa.ArrowException, OSError, IndexError) as error:
        raise Reject("truncated shard", f"{path.name} row group {group}: {str(error)[:200]}") from error


@functools.lru_cache(maxsize=1)
def _read_group(path: Path, group: int) -> pa.Table:
    with pq.ParquetFile(path) as file:
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        return file.read_row_group(group, columns=columns)
