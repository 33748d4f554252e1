"""What exports share: which steps of an episode have pictures, and complaints where some do not."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pokevla_jax.data.codec import DataError
from pokevla_jax.data.records import EpisodeDataset


def episode_rows(dataset: EpisodeDataset, index: int) -> range:
    """Rows of an episode, all of which have a picture.

    Raises:
        DataError: where some were not rendered: other formats have no steps without pictures.
    """
    rows = range(int(dataset.starts[index]), int(dataset.starts[index + 1]))
    missing = int((dataset.record[rows.start : rows.stop] < 0).sum())
    if missing:
        raise DataError(
            f"{missing} of {len(rows)} steps of episode {dataset.episodes[index].id!r} have no picture; record with "
            "--render-every 1 to export"
        )
    return rows


def check_exportable(dataset: EpisodeDataset) -> None:
    """Raises ``DataError`` before anything is written where an episode cannot be exported."""
    for index in range(len(dataset.episodes)):
        episode_rows(dataset, index)


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder to fill beside ``out``, which takes its place at the end; nothing half-written is left."""
    if out.exists():
        raise FileExistsError(f"{out} exists; choose another --out or delete it first")
    import shutil

    temp = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    temp.mkdir(parents=True)
    try:
        yield temp
        os.replace(temp, out)
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def column_statistics(values: np.ndarray) -> dict[str, list]:
    """The figures that LeRobot stores of a column [t, n]."""
    return {
        "min": values.min(0).tolist(),
        "max": values.max(0).tolist(),
        "mean": values.mean(0).tolist(),
        "std": values.std(0).tolist(),
        "count": [len(values)],
    }
