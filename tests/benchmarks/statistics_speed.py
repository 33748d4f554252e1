"""How much `pokevla-stats` reads, and how long it takes: 100,000 frames with pictures, a million rows without.

    python tests/benchmarks/statistics_speed.py [--frames 100000] [--rows 1000000] [--folder DIR]

Bytes are those of the process's read calls (/proc/self/io), so Linux only. Prints JSON lines.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import numpy as np

from pokevla_jax.data.normalize import STATE_FLOOR
from pokevla_jax.data.normalize import _column_statistics
from pokevla_jax.data.normalize import compute_statistics
from pokevla_jax.data.records import Episode
from pokevla_jax.data.records import Frame
from pokevla_jax.data.records import open_dataset
from pokevla_jax.data.records import write_shard

VIEWS = ("agentview", "wrist")
LENGTH = 250


def episode(number: int, length: int) -> Episode:
    """Numbers of an episode, at random."""
    rng = np.random.default_rng(number)
    return Episode(
        id=f"e{number}",
        suite="benchmark",
        task=0,
        instruction="move",
        success=True,
        views=VIEWS,
        intrinsics=np.stack([np.eye(3)] * 2),
        state=rng.normal(size=(length, 8)).astype(np.float32),
        action=rng.uniform(-1, 1, (length, 7)).astype(np.float32),
        executed=rng.uniform(-1, 1, (length, 7)).astype(np.float32),
        chunk_end=np.full(length, length, np.int32),
        base_from_camera=rng.normal(size=(length, 2, 4, 4)).astype(np.float32),
        keypoints=rng.normal(size=(length, 2, 3)).astype(np.float32),
    )


def write(folder: Path, rows: int, pictures: bool, *, length: int = LENGTH, per_shard: int = 40) -> None:
    """A dataset of ``rows`` steps; pictures are photograph-like: smooth, with some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:128, 0:128]
    pool = [
        np.clip(np.stack([x, y, x + y], -1) * rng.uniform(0.3, 1) + rng.normal(0, 6, (128, 128, 3)), 0, 255).astype(
            np.uint8
        )
        for _ in range(16)
    ]
    count = rows // length
    for shard, start in enumerate(range(0, count, per_shard)):
        chosen = range(start, min(start + per_shard, count))

        def frames(number: int) -> dict[int, Frame]:
            if not pictures:
                return {}
            return {t: Frame({v: pool[(number + t + k) % 16] for k, v in enumerate(VIEWS)}) for t in range(length)}

        episodes = ((episode(number, length), frames(number)) for number in chosen)
        write_shard(folder, f"s{shard:04d}", episodes, update_manifest=False)


def bytes_read() -> int:
    """Bytes that this process has read so far."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])


def measure(folder: Path) -> dict:
    """What opening the dataset and its statistics cost."""
    total = sum(path.stat().st_size for path in folder.iterdir())
    before, start = bytes_read(), time.perf_counter()
    dataset = open_dataset(folder)
    statistics = compute_statistics(dataset)
    seconds, read = time.perf_counter() - start, bytes_read() - before
    # Of the numbers that were written, not of those read; the first 100,000 rows for the large one.
    count = min(len(dataset), 100_000)
    written = np.concatenate([episode(n, LENGTH).state for n in range(count // LENGTH)]).astype(np.float64)
    column = (
        statistics.state
        if count == len(dataset)
        else _column_statistics(dataset.state[:count], np.ones(8, np.bool_), STATE_FLOOR)
    )
    expected = (written.mean(0), written.std(0), *np.quantile(written, [0.01, 0.99], axis=0))
    found = (column.mean, column.std, column.q01, column.q99)
    return {
        "rows": len(dataset),
        "frames": int((dataset.record >= 0).sum()),
        "seconds": round(seconds, 2),
        "dataset_mb": round(total / 1e6, 1),
        "read_mb": round(read / 1e6, 1),
        "read_fraction": round(read / total, 4),
        "equals_numpy": all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True)),
    }


def main() -> None:
    """Writes both datasets, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        for rows, pictures in ((arguments.frames, True), (arguments.rows, False)):
            folder = Path(name) / str(pictures)
            write(folder, rows, pictures)
            print(json.dumps(measure(folder)), flush=True)


if __name__ == "__main__":
    main()
