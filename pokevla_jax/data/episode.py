"""One episode in memory, and as rows of a table: its columns, their checks, and its description as JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from dataclasses import field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import Frame
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

# Columns of the table and what one row of each holds; v = views, r, a, k as in pokevla_jax/typing.py.
COLUMNS = ("state", "action", "executed", "base_from_camera", "keypoints")
INDICES = ("episode", "step", "chunk_end", "record")


@dataclass(frozen=True, kw_only=True)
class EpisodeInfo:
    """What is known of an episode as a whole.

    Attributes:
        id: unique in the dataset; the held-out split hashes it.
        task: index of the task in its suite.
        source: where it comes from (a layout, a file), plain JSON.
        views: names of the cameras, in the order of the arrays below.
        intrinsics: pinhole matrices of the stored images, in pixels.
    """

    id: str
    suite: str
    task: int
    instruction: str
    success: bool
    views: tuple[str, ...]
    intrinsics: Float[np.ndarray, "v 3 3"]
    source: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Episode(EpisodeInfo):
    """One demonstration: ``EpisodeInfo`` and T steps of numbers.

    Attributes:
        state: proprio: end-effector position (m), axis-angle, gripper joint positions.
        action: the label, in LIBERO's convention (gripper -1 opens, +1 closes).
        executed: what was done; differs from the label where noise was added.
        chunk_end: a chunk that starts at step i may use the labels of steps i .. chunk_end[i] - 1. After a random burst
            the labels no longer follow from what was seen at step i.
        base_from_camera: camera poses (x right, y down, z forward) in the robot's base frame.
        keypoints: positions of target and goal object, metres, base frame.
    """

    state: Float[np.ndarray, "t r"]
    action: Float[np.ndarray, "t a"]
    executed: Float[np.ndarray, "t a"]
    chunk_end: Int[np.ndarray, " t"]
    base_from_camera: Float[np.ndarray, "t v 4 4"]
    keypoints: Float[np.ndarray, "t k 3"]

    def __len__(self) -> int:
        """Steps."""
        return len(self.action)


def check_episode(episode: Episode) -> None:
    """Raises ``DataError`` where shapes contradict each other or a number is not finite."""
    length, views = len(episode), len(episode.views)
    shapes = {
        "state": (length, None),
        "action": (length, None),
        "executed": np.shape(episode.action),
        "chunk_end": (length,),
        "base_from_camera": (length, views, 4, 4),
        "keypoints": (length, None, 3),
        "intrinsics": (views, 3, 3),
    }
    if not length:
        raise DataError(f"Episode {episode.id!r} has no steps")
    for name, expected in shapes.items():
        array = np.asarray(getattr(episode, name))
        if array.ndim != len(expected) or any(e not in (None, n) for n, e in zip(array.shape, expected, strict=True)):
            raise DataError(f"Column {name!r} of episode {episode.id!r} has shape {array.shape}, expected {expected}")
        if not np.isfinite(array).all():
            raise DataError(f"Column {name!r} of episode {episode.id!r} holds a value that is not finite")
    ends = np.asarray(episode.chunk_end)
    if (ends < np.arange(length)).any() or (ends > length).any():
        raise DataError(f"chunk_end of episode {episode.id!r} must lie between its own step and the length {length}")


def check_frame(episode: Episode, step: int, frame: Frame, size: tuple[int, int] | None) -> tuple[int, int]:
    """The size of the frame's images, which must be ``size`` unless that is None, for every view of the episode."""
    if not 0 <= step < len(episode):
        raise DataError(f"A frame of episode {episode.id!r} belongs to step {step} of {len(episode)}")
    for part in ("images", "masks", "depth"):
        maps = getattr(frame, part)
        if maps is None:
            continue
        if set(maps) != set(episode.views):
            raise DataError(
                f"Frame {step} of episode {episode.id!r} has {part} of views {sorted(maps)}, "
                f"expected {sorted(episode.views)}"
            )
        for view, array in maps.items():
            size = size or array.shape[:2]
            if array.shape[:2] != size:
                raise DataError(
                    f"{part} of {view!r} at step {step} of {episode.id!r} is {array.shape[:2]}, others are {size}"
                )
    assert size is not None
    return size


def to_table(episode: Episode, index: int, records: np.ndarray) -> pa.Table:
    """One row per step; ``index`` is the episode's place in its shard, ``records`` where each step's frame is."""
    length = len(episode)
    columns: dict[str, pa.Array] = {
        "episode": pa.array(np.full(length, index, np.int32)),
        "step": pa.array(np.arange(length, dtype=np.int32)),
        "chunk_end": pa.array(np.asarray(episode.chunk_end, np.int32)),
        "record": pa.array(records),
    }
    for name in COLUMNS:
        array = np.ascontiguousarray(getattr(episode, name), np.float32)
        if not array.size:
            # Arrow has no lists of no width: an episode without key points has no such column.
            continue
        flat = array.reshape(length, -1)
        columns[name] = pa.FixedSizeListArray.from_arrays(flat.ravel(), flat.shape[1])
    return pa.table(columns)


def from_table(table: pa.Table, header: dict, path: Path) -> dict[str, np.ndarray]:
    """The columns of a shard as arrays; the inverse of ``to_table`` for all its episodes.

    Raises:
        DataError: when a column is missing, of another type or out of range.
    """
    # The rest of each row's shape; -1 and the other columns follow from the stored width.
    shapes = {"base_from_camera": (len(header["episodes"][0]["views"]), 4, 4), "keypoints": (-1, 3)}
    result = {}
    for name in (*COLUMNS, *INDICES):
        if name == "keypoints" and name not in table.column_names:
            result[name] = np.zeros((len(table), 0, 3), np.float32)
            continue
        if name not in table.column_names or table[name].null_count:
            raise DataError(f"Table {path} lacks column {name!r} or has gaps in it; record the shard again")
        column = table[name].combine_chunks()
        try:
            if name in INDICES:
                result[name] = column.cast(pa.int32()).to_numpy(zero_copy_only=False)
            else:
                flat = column.flatten().cast(pa.float32()).to_numpy(zero_copy_only=False)
                result[name] = flat.reshape(len(table), *shapes.get(name, (column.type.list_size,)))
        except (AttributeError, ValueError, pa.ArrowException) as error:
            raise DataError(f"Column {name!r} of {path} has type {column.type}, which is not this format's") from error
        if not np.isfinite(result[name]).all():
            raise DataError(f"Column {name!r} of {path} holds a value that is not finite; record the shard again")
    if not _in_range(result, header):
        raise DataError(f"Table {path} has steps or record numbers out of range; record the shard again")
    return result


def _in_range(columns: dict[str, np.ndarray], header: dict) -> bool:
    """Whether the rows are the described episodes, step by step, and point at records that exist."""
    lengths = np.array([info["length"] for info in header["episodes"]])
    if lengths.sum() != len(columns["step"]):
        return False
    steps = np.concatenate([np.arange(n) for n in lengths])
    return bool(
        (columns["episode"] == np.repeat(np.arange(len(lengths)), lengths)).all()
        and (columns["step"] == steps).all()
        and (columns["chunk_end"] >= steps).all()
        and (columns["chunk_end"] <= np.repeat(lengths, lengths)).all()
        and (columns["record"] >= -1).all()
        and (columns["record"] < header["num_records"]).all()
    )


def info_to_json(episode: Episode) -> dict[str, Any]:
    """What is stored of an episode as a whole, in plain JSON types."""
    return {
        "id": episode.id,
        "suite": episode.suite,
        "task": int(episode.task),
        "instruction": episode.instruction,
        "success": bool(episode.success),
        "length": len(episode),
        "views": list(episode.views),
        "intrinsics": np.asarray(episode.intrinsics, np.float64).tolist(),
        "source": dict(episode.source),
    }


def info_from_json(info: dict[str, Any], path: Path) -> EpisodeInfo:
    """The inverse of ``info_to_json``, for an entry that ``manifest.parse_header`` has checked."""
    try:
        intrinsics = np.asarray(info["intrinsics"], np.float32).reshape(len(info["views"]), 3, 3)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"Table {path} has wrong intrinsics for episode {info['id']!r}; record the shard again"
        ) from error
    names = ("id", "suite", "task", "instruction", "success", "source")
    return EpisodeInfo(**{name: info[name] for name in names}, views=tuple(info["views"]), intrinsics=intrinsics)
