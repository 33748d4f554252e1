"""Episodes as a LeRobot dataset of version 3.0: one parquet file of numbers, one mp4 file per view.

The layout is that of ``pokevla_jax/data/ingest/lerobot.py``, which reads it back. Numbers are kept exactly; pictures
become H.264. Masks, depth and camera poses have no place in the format and are left out.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pokevla_jax.data import video
from pokevla_jax.data.codec import DataError
from pokevla_jax.data.export.frames import check_exportable
from pokevla_jax.data.export.frames import column_statistics
from pokevla_jax.data.export.frames import episode_rows
from pokevla_jax.data.export.frames import new_folder
from pokevla_jax.data.records import EpisodeDataset

_DATA = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
_VIDEO = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
_FIRST = {"chunk_index": 0, "file_index": 0}


def export_lerobot(dataset: EpisodeDataset, out: Path, *, fps: int) -> int:
    """Writes ``out`` whole or not at all; the number of frames.

    Args:
        dataset: every step must have pictures.
        out: must not exist.
        fps: control steps per second (LIBERO: 20).

    Raises:
        DataError: where a step has no picture.
        FileExistsError: when ``out`` exists.
    """
    check_exportable(dataset)
    if dataset.image_size is None:
        raise DataError(f"{dataset.directory} has no pictures to export")
    tasks = sorted({info.instruction for info in dataset.episodes})
    keys = {view: f"observation.images.{view}" for view in dataset.views}
    with new_folder(out) as temp:
        table, rows = _tables(dataset, tasks, keys, fps)
        for folder in ("data/chunk-000", "meta/episodes/chunk-000"):
            (temp / folder).mkdir(parents=True)
        pq.write_table(table, temp / _DATA.format(**_FIRST))
        pq.write_table(pa.Table.from_pylist(rows), temp / "meta/episodes/chunk-000/file-000.parquet")
        numbers = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": tasks})
        pq.write_table(numbers, temp / "meta/tasks.parquet")
        for view, key in keys.items():
            path = temp / _VIDEO.format(video_key=key, **_FIRST)
            path.parent.mkdir(parents=True)
            video.encode(path, _frames(dataset, view), fps)
        (temp / "meta/info.json").write_text(json.dumps(_info(dataset, keys, len(tasks), fps), indent=1))
        statistics = {
            "observation.state": column_statistics(dataset.state),
            "action": column_statistics(dataset.action),
        }
        (temp / "meta/stats.json").write_text(json.dumps(statistics, indent=1))
    return len(dataset)


def _tables(
    dataset: EpisodeDataset, tasks: list[str], keys: dict[str, str], fps: int
) -> tuple[pa.Table, list[dict[str, Any]]]:
    """The numbers of all steps, and a row of description per episode."""
    number = {task: index for index, task in enumerate(tasks)}
    task = np.array([number[info.instruction] for info in dataset.episodes], np.int64)
    table = pa.table(
        {
            "observation.state": _lists(dataset.state),
            "action": _lists(dataset.action),
            "timestamp": pa.array(dataset.step / fps, pa.float32()),
            "frame_index": pa.array(dataset.step, pa.int64()),
            "episode_index": pa.array(dataset.episode, pa.int64()),
            "index": pa.array(np.arange(len(dataset)), pa.int64()),
            "task_index": pa.array(task[dataset.episode], pa.int64()),
        }
    )
    rows = []
    for index, info in enumerate(dataset.episodes):
        start, stop = int(dataset.starts[index]), int(dataset.starts[index + 1])
        row: dict[str, Any] = {"episode_index": index, "tasks": [info.instruction], "length": stop - start}
        row |= {f"data/{name}": value for name, value in _FIRST.items()}
        row |= {"dataset_from_index": start, "dataset_to_index": stop}
        for key in keys.values():
            row |= {f"videos/{key}/{name}": value for name, value in _FIRST.items()}
            row |= {f"videos/{key}/from_timestamp": start / fps, f"videos/{key}/to_timestamp": stop / fps}
        rows.append(row)
    return table, rows


def _lists(values: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).ravel()), values.shape[1])


def _frames(dataset: EpisodeDataset, view: str) -> Iterator[np.ndarray]:
    for index in range(len(dataset.episodes)):
        for row in episode_rows(dataset, index):
            yield dataset.frame_at(row, masks=False, depth=False).images[view]


def _info(dataset: EpisodeDataset, keys: dict[str, str], num_tasks: int, fps: int) -> dict[str, Any]:
    assert dataset.image_size is not None
    height, width = dataset.image_size
    picture = {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": {"video.fps": fps, "video.codec": "h264", "video.pix_fmt": "yuv420p", "has_audio": False},
    }
    features: dict[str, Any] = {key: picture for key in keys.values()}
    for key, values in (("observation.state", dataset.state), ("action", dataset.action)):
        features[key] = {"dtype": "float32", "shape": [values.shape[1]], "names": None}
    for key in ("frame_index", "episode_index", "index", "task_index"):
        features[key] = {"dtype": "int64", "shape": [1], "names": None}
    features["timestamp"] = {"dtype": "float32", "shape": [1], "names": None}
    return {
        "codebase_version": "v3.0",
        "robot_type": "unknown",
        "total_episodes": len(dataset.episodes),
        "total_frames": len(dataset),
        "total_tasks": num_tasks,
        "chunks_size": 1000,
        "fps": fps,
        "splits": {"train": f"0:{len(dataset.episodes)}"},
        "data_path": _DATA,
        "video_path": _VIDEO,
        "features": features,
    }
