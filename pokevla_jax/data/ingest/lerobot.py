"""LeRobot datasets of the versions 2.1 and 3.0: numbers in parquet files, pictures in them or in mp4 files.

::

    2.1                                              3.0
    meta/info.json  (codebase_version, features)     the same
    meta/episodes.jsonl, meta/tasks.jsonl            meta/episodes/chunk-*/file-*.parquet, meta/tasks.parquet
    data/chunk-000/episode_000000.parquet            data/chunk-000/file-000.parquet
    videos/chunk-000/<key>/episode_000000.mp4        videos/<key>/chunk-000/file-000.mp4

In 3.0 a file holds many episodes; where each begins stands in ``meta/episodes``. Without a robot's description the
views are all pictures of ``features``, in order, with ``observation.state`` and ``action`` for the numbers and the
action's last entry for the gripper.
"""

import functools
import io
import json
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pokevla_jax.data.codec import MAX_SIDE
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import Frame
from pokevla_jax.data.episode import Episode
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.ingest.base import inside
from pokevla_jax.data.ingest.robots import Robot
from pokevla_jax.data.ingest.robots import build_episode
from pokevla_jax.data.video import decode_span

VERSIONS = ("v2.1", "v3.0")


@dataclass(frozen=True)
class LeRobotAdapter:
    """Reads one dataset."""

    source: str
    licence: str
    robot: Robot | None = None
    size: int | None = None

    def settings(self) -> dict[str, Any]:
        robot = self.robot.settings() if self.robot else {}
        return {"adapter": "lerobot", "size": self.size, **robot}

    def inputs(self, data: Path) -> list[Path]:
        info = read_info(data)
        if info["codebase_version"] == "v2.1":
            return [data / "meta" / name for name in ("info.json", "episodes.jsonl", "tasks.jsonl")]
        return [data / "meta" / "info.json", data / "meta" / "tasks.parquet", *_episode_files(data)]

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        info = read_info(data)
        if info["codebase_version"] == "v2.1":
            yield from _references_v2(data, info)
        else:
            yield from _references_v3(data)

    def load(self, data: Path, reference: Reference) -> tuple[Episode, Mapping[int, Frame]]:
        info, entry = read_info(data), reference.payload
        robot = self.robot or default_robot(info)
        index = entry["episode_index"]
        table = _rows(data, info, entry)
        if len(table) != entry["length"]:
            raise Reject("truncated shard", f"episode {index} has {len(table)} rows, meta says {entry['length']}")
        keys = (*robot.state, *robot.action)
        columns = {key: _matrix(table[key], key) for key in keys if key in table.column_names}
        pictures = {}
        for key in (*robot.views.values(), *robot.masks.values(), *robot.depth.values()):
            kind = info["features"].get(key, {}).get("dtype")
            if kind == "video":
                pictures[key] = list(_video(data, info, entry, key))
            elif kind == "image" and key in table.column_names:
                pictures[key] = [_decode(cell, key) for cell in table[key].to_pylist()]
        tasks = entry.get("tasks") or [""]
        return build_episode(
            robot,
            id=reference.id,
            suite=self.source,
            instruction=str(tasks[0]),
            columns=columns,
            pictures=pictures,
            size=self.size,
            source={"episode_index": index},
        )


def read_info(data: Path) -> dict[str, Any]:
    """``meta/info.json`` of a dataset whose version is known.

    Raises:
        FileNotFoundError: when it is not there.
        DataError: for another version, naming the one found, or a broken file.
    """
    path = data / "meta" / "info.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; give the folder of one LeRobot dataset with --data")
    try:
        info = json.loads(path.read_text())
        version = info["codebase_version"]
        features = dict(info["features"])
        fps = float(info["fps"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not a LeRobot description ({error!r}); restore it from a copy") from error
    if version not in VERSIONS:
        raise DataError(
            f"{path} is of LeRobot version {version!r}; {' and '.join(VERSIONS)} are read. Convert it with LeRobot's "
            "own scripts first"
        )
    return {**info, "features": features, "fps": fps}


def default_robot(info: Mapping[str, Any]) -> Robot:
    """The description of a dataset that was given none: all its pictures, ``observation.state`` and ``action``."""
    keys = [key for key, feature in info["features"].items() if feature.get("dtype") in ("video", "image")]
    if not keys:
        raise DataError("The LeRobot dataset has no pictures; see docs/add_your_data.md")
    views = {key.rpartition(".")[2]: key for key in keys}
    return Robot(name="lerobot", views=views, state=("observation.state",), action=("action",), instruction="task")


# --- where episodes are ---


def _references_v2(data: Path, info: Mapping[str, Any]) -> Iterator[Reference | Rejection]:
    path = data / "meta" / "episodes.jsonl"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; the dataset says it is of version 2.1")
    for number, line in enumerate(path.read_text().splitlines()):
        try:
            entry = json.loads(line)
            index, length = int(entry["episode_index"]), int(entry["length"])
        except (ValueError, KeyError, TypeError) as error:
            yield Rejection(f"episodes.jsonl/{number}", "malformed", repr(error))
            continue
        chunk = index // int(info.get("chunks_size", 1000))
        tasks = [str(task) for task in entry.get("tasks", [])]
        yield Reference(
            f"episode_{index:06d}", {"episode_index": index, "length": length, "tasks": tasks, "chunk": chunk}
        )


def _episode_files(data: Path) -> list[Path]:
    paths = sorted((data / "meta" / "episodes").glob("chunk-*/file-*.parquet"))
    if not paths:
        raise FileNotFoundError(f"{data}/meta/episodes holds no chunk-*/file-*.parquet; the dataset is of version 3.0")
    return paths


def _references_v3(data: Path) -> Iterator[Reference | Rejection]:
    for path in _episode_files(data):
        name = path.relative_to(data).as_posix()
        try:
            # The statistics of every episode stand in the same rows; they are not needed.
            names = [column for column in pq.read_schema(path).names if not column.startswith("stats/")]
            rows = pq.read_table(path, columns=names).to_pylist()
        except (pa.ArrowException, OSError) as error:
            yield Rejection(f"{name}/...", "truncated shard", f"{name}: {str(error)[:200]}")
            continue
        for row in rows:
            yield Reference(f"episode_{int(row['episode_index']):06d}", row)


# --- what they hold ---


def _rows(data: Path, info: Mapping[str, Any], entry: Mapping[str, Any]) -> pa.Table:
    index = entry["episode_index"]
    if info["codebase_version"] == "v2.1":
        template = info.get("data_path", "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet")
        return _read_table(inside(data, template.format(episode_chunk=entry["chunk"], episode_index=index)))
    template = info.get("data_path", "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet")
    place = {name: int(entry[f"data/{name}"]) for name in ("chunk_index", "file_index")}
    table = _read_table(inside(data, template.format(**place)))
    # Files hold whole episodes one after the other; rows are found by their own column, not by their number.
    return table.filter(pa.compute.equal(table["episode_index"], index))


@functools.lru_cache(maxsize=1)
def _read_table(path: Path) -> pa.Table:
    try:
        return pq.read_table(path)
    except FileNotFoundError as error:
        raise Reject("truncated shard", f"{path} does not exist") from error
    except (pa.ArrowException, OSError) as error:
        raise Reject("truncated shard", f"{path}: {str(error)[:200]}") from error


def _matrix(column: pa.ChunkedArray, key: str) -> np.ndarray:
    """A column of numbers or of lists of numbers as [t, n]."""
    values = column.to_pylist()
    try:
        return np.asarray(values, np.float32 if values else None)
    except (TypeError, ValueError) as error:
        raise Reject("wrong type", f"{key} holds {column.type}, not numbers of one width") from error


def _video(data: Path, info: Mapping[str, Any], entry: Mapping[str, Any], key: str) -> Iterator[np.ndarray]:
    fps, length = info["fps"], entry["length"]
    if info["codebase_version"] == "v2.1":
        template = (
            info.get("video_path") or "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
        )
        values = {"episode_chunk": entry["chunk"], "episode_index": entry["episode_index"]}
        yield from decode_span(inside(data, template.format(video_key=key, **values)), 0, length, fps)
        return
    template = info.get("video_path") or "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    try:
        place = {name: int(entry[f"videos/{key}/{name}"]) for name in ("chunk_index", "file_index")}
        first = round(float(entry[f"videos/{key}/from_timestamp"]) * fps)
    except (KeyError, TypeError) as error:
        raise Reject("malformed", f"meta/episodes does not say where the video {key!r} is ({error!r})") from error
    yield from decode_span(inside(data, template.format(video_key=key, **place)), first, length, fps)


def _decode(cell: Any, key: str) -> np.ndarray:
    if not isinstance(cell, dict) or not isinstance(cell.get("bytes"), bytes):
        raise Reject("missing image", f"{key} holds no picture")
    try:
        with Image.open(io.BytesIO(cell["bytes"])) as image:
            if max(image.size) > MAX_SIDE:
                raise Reject("wrong size", f"{key} holds a picture of {image.size}; {MAX_SIDE} a side are read")
            return np.asarray(image if image.mode.startswith(("I", "L")) else image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, Reject):
            raise
        raise Reject("broken image", f"{key} holds something that is no picture ({type(error).__name__})") from error
