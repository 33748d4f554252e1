"""pokevla-record: demonstrations of LIBERO tasks by the scripted expert, rendered afterwards."""

import argparse
import json
import os
import re
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
from pokevla_jax.sim.assets import resolve_assets
from pokevla_jax.sim.demonstrate import Noise
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.recorder import Recording
from pokevla_jax.sim.recorder import ShardResult
from pokevla_jax.sim.recorder import record
from pokevla_jax.sim.scenes import check_kind
from pokevla_jax.sim.tasks import list_tasks
from pokevla_jax.sim.tasks import load_task

EXAMPLES = (
    "pokevla-record --suite libero_object --tasks 0 --episodes 240 --layout-seed 1000 --workers 2 --out demos",
    "pokevla-record --suite libero_object --tasks all --layout-kind shared --episodes 400 --layout-seed 7 --out shared",
)


def parse_tasks(text: str, suite: str) -> tuple[int, ...]:
    """Task indices of ``all``, ``0,3``, ``0-4`` or a task's name, in order and without repetition.

    Raises:
        SimulationError: for a task that does not exist, naming the nearest.
    """
    if text == "all":
        return tuple(task.index for task in list_tasks(suite))
    indices: list[int] = []
    for part in text.split(","):
        numbers = re.fullmatch(r"(\d+)(?:-(\d+))?", part.strip())
        if numbers:
            first, last = int(numbers[1]), int(numbers[2] or numbers[1])
            indices += [load_task(suite, index).index for index in range(first, last + 1)]
        else:
            indices.append(load_task(suite, part.strip()).index)
    return tuple(dict.fromkeys(indices))


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    noise = Noise()
    p = flags.make_parser(__doc__, EXAMPLES)
    p.prog = "pokevla-record"
    p.add_argument("--suite", default="libero_object", metavar="NAME", help="benchmark suite (default: %(default)s)")
    p.add_argument("--tasks", "--task", default="0", help="0, 0,3, 0-4, a task's name, or all (default: %(default)s)")
    p.add_argument("--episodes", type=int, required=True, metavar="N", help="layouts of each task to play")
    kinds = "stored: LIBERO's own; moved: each task's scene; shared: the objects of many (default: %(default)s)"
    p.add_argument("--layout-kind", default="moved", metavar="KIND", help=kinds)
    seeds = "other seeds give other layouts (default: %(default)s)"
    p.add_argument("--layout-seed", type=int, default=0, metavar="N", help=seeds)
    p.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder of the dataset; an interrupted recording goes on"
    )
    p.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes, one core each (default: %(default)s)"
    )
    sizes = "side of the square images (default: %(default)s)"
    p.add_argument("--image-size", type=int, default=128, metavar="PIXELS", help=sizes)
    every = "render every N-th step (default: %(default)s)"
    p.add_argument("--render-every", type=int, default=4, metavar="N", help=every)
    renderers = "fast, or robosuite's own, as published results use it (default: %(default)s)"
    p.add_argument("--renderer", default="fast", choices=("fast", "robosuite"), help=renderers)
    terminal.add_assets(p)
    clean = "standard deviation of the noise on clean steps (default: %(default)s)"
    p.add_argument("--action-noise", type=float, default=noise.action, metavar="STD", help=clean)
    bursts = "chance of a random burst per step (default: %(default)s)"
    p.add_argument("--burst", type=float, default=noise.burst, metavar="CHANCE", help=bursts)
    first = "most random first steps (default: %(default)s)"
    p.add_argument("--start-steps", type=int, default=noise.start_steps, metavar="N", help=first)
    p.add_argument("--json", action="store_true", help="print the summary as JSON")
    return p


def command(arguments: argparse.Namespace) -> int:
    """Records what the arguments ask for and prints what became of it."""
    for name, low in (("episodes", 1), ("workers", 1), ("render_every", 1), ("start_steps", 0), ("layout_seed", 0)):
        _at_least(name, getattr(arguments, name), low)
    _at_least("image_size", arguments.image_size, 16)
    for name in ("action_noise", "burst"):
        if not 0.0 <= getattr(arguments, name) <= 1.0:
            raise SimulationError(f"--{name.replace('_', '-')} {getattr(arguments, name)} must lie between 0 and 1")
    tasks = parse_tasks(arguments.tasks, arguments.suite)
    check_kind(arguments.layout_kind, arguments.suite)
    out = _writable(arguments.out)
    recording = Recording(
        suite=arguments.suite,
        tasks=tasks,
        episodes=arguments.episodes,
        layout_kind=arguments.layout_kind,
        layout_seed=arguments.layout_seed,
        assets=resolve_assets(arguments.assets),
        noise=Noise(action=arguments.action_noise, burst=arguments.burst, start_steps=arguments.start_steps),
        image_size=arguments.image_size,
        render_every=arguments.render_every,
        renderer=arguments.renderer,
    )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    begin = time.monotonic()
    try:
        with Progress(*columns, TimeRemainingColumn(), disable=arguments.json) as bar:
            row = bar.add_task("recording episodes", total=recording.episodes * len(tasks))
            results = record(recording, out, workers=arguments.workers, progress=lambda n: bar.update(row, completed=n))
    except KeyboardInterrupt:
        print(f"pokevla-record: interrupted; the same command goes on with what is in {out}", file=sys.stderr)
        return 130
    summary = summarise(results, time.monotonic() - begin)
    (out / "recording.json").write_text(json.dumps(summary, indent=1) + "\n")
    if arguments.json:
        print(json.dumps(summary))
        return 0
    print(
        f"{summary['stored']} of {summary['attempted']} episodes in {out}, {summary['failed_episodes']} failed; "
        f"{summary['reused_shards']} of {len(results)} shards reused, {summary['minutes']:.1f} min"
    )
    if seconds := summary["core_seconds_per_episode"]:
        print(f"core seconds per episode: {seconds['physics']} physics, {seconds['rendering']} rendering")
    return 0


def summarise(results: list[ShardResult], seconds: float) -> dict:
    """Counts and times of a recording, in plain JSON types."""
    fresh = [result for result in results if not result.reused]
    played = sum(result.episodes for result in fresh)
    attempted = sum(result.episodes for result in results)
    failed = {result.name: list(result.failed) for result in results if result.failed}
    failures = sum(map(len, failed.values()))
    per_episode = {
        "physics": round(sum(result.physics_seconds for result in fresh) / max(played, 1), 3),
        "rendering": round(sum(result.render_seconds for result in fresh) / max(played, 1), 3),
    }
    return {
        "attempted": attempted,
        "stored": attempted - failures,
        "failed_episodes": failures,
        "failed": failed,
        "reused_shards": len(results) - len(fresh),
        "minutes": round(seconds / 60, 3),
        "core_seconds_per_episode": per_episode if fresh else {},
    }


def _at_least(name: str, value: int, low: int) -> None:
    if value < low:
        raise SimulationError(f"--{name.replace('_', '-')} {value} is too small; give at least {low}")


def _writable(out: Path) -> Path:
    """The folder, created."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        writable = os.access(out, os.W_OK)
    except OSError as error:
        raise SimulationError(f"Cannot write to --out {out}: {error.strerror}; choose another folder") from error
    if not writable:
        raise SimulationError(f"Cannot write to --out {out}: permission denied; choose another folder")
    return out


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console command."""
    return flags.run(parser(), command, argv)


if __name__ == "__main__":
    raise SystemExit(main())
