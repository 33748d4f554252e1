"""pokevla-corpus: image-text samples in four pillars from simulated LIBERO scenes, with exact answers."""

import argparse
import json
import sys
import time
from pathlib import Path

from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeElapsedColumn
from rich.progress import TimeRemainingColumn

from pokevla_jax import terminal
from pokevla_jax.cli import flags
from pokevla_jax.cli.ingest import write_manifest
from pokevla_jax.cli.record import parse_tasks
from pokevla_jax.data import files
from pokevla_jax.data.corpus import open_corpus
from pokevla_jax.sim.assets import resolve_assets
from pokevla_jax.sim.corpus import build
from pokevla_jax.sim.corpus import sheet
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.tasks import list_tasks

EXAMPLES = (
    "pokevla-corpus --out corpus --workers 2",
    "pokevla-corpus --suites libero_object --tasks 0-2 --layouts 4 --out small --tokenizer Qwen2.5-0.5B",
)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    p = flags.make_parser(__doc__, EXAMPLES)
    p.prog = "pokevla-corpus"
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the corpus; complete tasks are kept"
    )
    suites = "which suites, several with commas (default: %(default)s)"
    p.add_argument("--suites", default=",".join(build.SUITES), metavar="NAMES", help=suites)
    p.add_argument("--tasks", default="all", help="of each suite: 0, 0,3, 0-4, or all (default: %(default)s)")
    p.add_argument("--layouts", type=int, default=20, metavar="N", help="layouts of each task (default: %(default)s)")
    p.add_argument("--frames", type=int, default=8, metavar="N", help="most frames of a layout (default: %(default)s)")
    p.add_argument(
        "--seed", type=int, default=0, metavar="N", help="other seeds give other scenes (default: %(default)s)"
    )
    sizes = "side of the square images (default: %(default)s)"
    p.add_argument("--image-size", type=int, default=128, metavar="PIXELS", help=sizes)
    p.add_argument("--tokenizer", metavar="DIR", help="Qwen2.5's tokenizer: store lengths for packing with it")
    terminal.add_assets(p)
    workers = "processes, or tasks at a time on a cluster (default: %(default)s)"
    p.add_argument("--workers", type=int, default=1, metavar="N", help=workers)
    cluster = "Ray cluster to work on, whose hosts must see --out and the assets (default: this machine alone)"
    p.add_argument("--address", metavar="auto|HOST:PORT", help=cluster)
    p.add_argument("--json", action="store_true", help="print the summary as JSON")
    return p


def command(arguments: argparse.Namespace) -> int:
    """Makes the corpus, its manifest and the sheets of examples, and prints what is in it."""
    for name, low in (("layouts", 1), ("frames", 1), ("workers", 1), ("seed", 0), ("image_size", 64)):
        if getattr(arguments, name) < low:
            option = name.replace("_", "-")
            raise SimulationError(f"--{option} {getattr(arguments, name)} is too small; give at least {low}")
    suites = arguments.suites.split(",")
    for suite in suites:
        list_tasks(suite)  # names the nearest suite where there is none
        if suite not in build.SUITES:
            raise SimulationError(f"The corpus has words for {', '.join(build.SUITES)}, not for {suite}")
    plan = build.Plan(
        tasks=build.tasks_of(suites, lambda suite: parse_tasks(arguments.tasks, suite)),
        layouts=arguments.layouts,
        frames=arguments.frames,
        seed=arguments.seed,
        assets=resolve_assets(arguments.assets),
        image_size=arguments.image_size,
        tokenizer=str(arguments.tokenizer) if arguments.tokenizer else None,
    )
    out = files.local(arguments.out)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    begin = time.monotonic()
    try:
        with Progress(*columns, TimeRemainingColumn(), disable=arguments.json) as bar:
            row = bar.add_task("tasks", total=len(plan.tasks))

            def show(tasks: int, samples: int) -> None:
                bar.update(row, completed=tasks, description=f"{samples} samples, tasks")

            summary = build.build(plan, out, workers=arguments.workers, address=arguments.address, progress=show)
    except KeyboardInterrupt:
        print(f"pokevla-corpus: interrupted; the same command goes on with what is in {out}", file=sys.stderr)
        return 130
    write_manifest(out)
    sheets = sheet.write_sheets(open_corpus(out), out)
    summary = {**summary, "minutes": round((time.monotonic() - begin) / 60, 2)}
    if arguments.json:
        print(json.dumps(summary))
        return 0
    print(
        f"{summary['ingested']} samples about {summary['frames']} frames in {out}, {summary['reused_shards']} of "
        f"{len(plan.tasks)} tasks reused, {summary['rejected']} layouts left out, {summary['minutes']} min"
    )
    print("  type                  samples  most common answer")
    for type_, count in summary["types"].items():
        best = summary["best_constant"].get(type_)
        print(f"  {type_:20s} {count:8d}  " + (f"{best['share']:.0%} {best['answer'][:60]}" if best else "(places)"))
    print(f"  look at {', '.join(str(path) for path in sheets)}")
    return 0


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command."""
    return flags.run(parser(), command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
