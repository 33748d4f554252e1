"""This project's own recordings, read again: joined, filtered, or made smaller for training.

Masks, depth, camera poses, key points and the burst marks of ``chunk_end`` are kept. DATA is a dataset's folder.
"""

import dataclasses
import functools
from collections.abc import Iterator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pokevla_jax.data.codec import DataError
from pokevla_jax.data.codec import Frame
from pokevla_jax.data.episode import Episode
from pokevla_jax.data.ingest.base import Reference
from pokevla_jax.data.ingest.base import Reject
from pokevla_jax.data.ingest.base import Rejection
from pokevla_jax.data.records import EpisodeDataset
from pokevla_jax.data.records import open_dataset


@dataclass(frozen=True)
class RecordingsAdapter:
    """Reads one dataset; failed episodes are left out unless asked for."""

    source: str
    licence: str
    size: int | None = None
    keep_failed: bool = False
    # Of the input: gripper entries and kind of action, kept with the output.
    actions: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        own = {"adapter": "recordings", "size": self.size, "keep_failed": self.keep_failed}
        return {**own, "actions": dict(self.actions)} if self.actions else own

    def inputs(self, data: Path) -> list[Path]:
        open_dataset(data)
        return sorted(path for path in data.glob("*.parquet") if not path.name.startswith("."))

    def references(self, data: Path) -> Iterator[Reference | Rejection]:
        dataset = _dataset(data)
        for index, info in enumerate(dataset.episodes):
            if info.success or self.keep_failed:
                yield Reference(info.id, index)
            else:
                yield Rejection(info.id, "malformed", "the episode failed; --keep-failed reads such ones")

    def load(self, data: Path, reference: Reference) -> tuple[Episode, Mapping[int, Frame]]:
        dataset, index = _dataset(data), reference.payload
        info = dataset.episodes[index]
        rows = slice(int(dataset.starts[index]), int(dataset.starts[index + 1]))
        try:
            frames = {
                int(dataset.step[row]): _sized(dataset.frame_at(row), self.size)
                for row in range(rows.start, rows.stop)
                if dataset.record[row] >= 0
            }
        except DataError as error:
            raise Reject("broken image", str(error)) from error
        intrinsics = info.intrinsics.astype(np.float64)
        if self.size is not None and dataset.image_size is not None:
            height, width = dataset.image_size
            intrinsics = np.diag([self.size / width, self.size / height, 1.0]) @ intrinsics
        names = ("state", "action", "executed", "chunk_end", "base_from_camera", "keypoints")
        shared = {f.name: getattr(info, f.name) for f in dataclasses.fields(info) if f.name != "intrinsics"}
        columns = {name: getattr(dataset, name)[rows] for name in names}
        return Episode(**shared, **columns, intrinsics=intrinsics), frames


@functools.lru_cache(maxsize=1)
def _dataset(data: Path) -> EpisodeDataset:
    return open_dataset(data)


def _sized(frame: Frame, size: int | None) -> Frame:
    if size is None:
        return frame

    def resize(maps: Mapping[str, np.ndarray] | None, interpolation: int) -> dict[str, np.ndarray] | None:
        if maps is None:
            return None
        return {view: cv2.resize(a, (size, size), interpolation=interpolation) for view, a in maps.items()}

    # Between two surfaces there is none, and a mask has no halves.
    nearest = cv2.INTER_NEAREST
    images = resize(frame.images, cv2.INTER_AREA)
    assert images is not None
    return Frame(images=images, masks=resize(frame.masks, nearest), depth=resize(frame.depth, nearest))
