"""``pokevla-stats --data DIR``: what a dataset holds, and the exact statistics that training normalises with."""

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np
from rich.console import Console
from rich.table import Table

from pokevla_jax.cli import flags
from pokevla_jax.data.normalize import ColumnStatistics
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.data.normalize import compute_statistics
from pokevla_jax.data.records import EpisodeDataset
from pokevla_jax.data.records import open_dataset


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; the exit status."""
    parser = flags.make_parser(
        __doc__, ["pokevla-stats --data data/soup", "pokevla-stats --data data/soup --json > s.json"]
    )
    parser.add_argument(
        "--data", required=True, metavar="DIR", help="a dataset written by pokevla-record or pokevla-ingest"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument("--verify", action="store_true", help="also read every frame, and stop at the first broken one")
    return flags.run(parser, _stats, argv)


def _stats(arguments: argparse.Namespace) -> None:
    dataset = open_dataset(arguments.data)
    statistics = compute_statistics(dataset)
    if arguments.verify:
        for row in np.flatnonzero(dataset.record >= 0):
            dataset.frame_at(int(row))
    if arguments.json:
        print(json.dumps({"dataset": dataset.manifest, "statistics": statistics.to_json()}))
    else:
        _print_tables(dataset, statistics)


def _print_tables(dataset: EpisodeDataset, statistics: Statistics) -> None:
    console = Console()
    manifest = dataset.manifest
    tasks = Table(title=f"{dataset.directory}: {manifest['num_episodes']} episodes, {manifest['num_steps']} steps")
    for heading in ("task", "episodes", "successful", "steps"):
        tasks.add_column(heading, justify="left" if heading == "task" else "right")
    for name, counts in manifest["tasks"].items():
        tasks.add_row(name, *(str(counts[key]) for key in ("episodes", "success", "steps")))
    console.print(tasks)
    size = "x".join(map(str, dataset.image_size)) if dataset.image_size else "none"
    console.print(f"{manifest['num_records']} frames of {', '.join(dataset.views)}, {size} pixels")
    for name, column in (("state", statistics.state), ("action", statistics.action)):
        console.print(_column_table(name, column))


def _column_table(name: str, column: ColumnStatistics) -> Table:
    table = Table(title=name)
    figures = ("min", "q01", "mean", "q99", "max", "std")
    for heading in ("dim", *figures, ""):
        table.add_column(heading, justify="left" if not heading else "right")
    for dim in range(len(column.mask)):
        note = "" if column.mask[dim] else "passes through"
        if column.near_constant[dim]:
            note = f"near-constant: divided by {column.floor:g} instead"
        table.add_row(str(dim), *(f"{getattr(column, figure)[dim]:.4f}" for figure in figures), note)
    return table


if __name__ == "__main__":
    sys.exit(main())
