"""The whole loop at a small size: record, train, train the blind control, evaluate, report.

``launch/quickstart.sh`` sets the machine up and calls this file. It knows command lines only: every phase is one of the
project's own commands, printed before it runs, so each can be repeated by hand. A finished phase leaves
``OUT/phases/<name>.json``; the next run reuses it as long as its command is the same.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pokevla_jax.terminal import Parser

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = """\
examples:
  bash launch/quickstart.sh                                  everything below runs/quickstart, 20 held-out layouts
  bash launch/quickstart.sh --out runs/seed1 --seed 1 --layouts 40
  bash launch/quickstart.sh --fresh                          forget finished phases and start over
  bash launch/quickstart.sh --config configs/libero_object_small.py --layout-kind shared --tasks all \\
      --episodes 150 --layouts 12 --out runs/shared          all ten objects, several hours; a third network
                                                             learns without the instruction
"""
# Demonstrations and tests are drawn from layout seeds that never meet, whatever --seed is.
TRAIN_LAYOUT_SEED = 1000
TEST_LAYOUT_SEED = 90_000


@dataclass(frozen=True)
class Phase:
    """One step of the loop: commands that run at the same time, each on its own share of the cores."""

    name: str
    title: str
    commands: tuple[tuple[str, ...], ...]


def phases(out: Path, arguments: argparse.Namespace) -> list[Phase]:
    """The commands of the whole loop, in order."""
    python = sys.executable
    suite = ("--suite", "libero_object", "--tasks", arguments.tasks)
    kind = ("--layout-kind", arguments.layout_kind)
    assets = ("--assets", arguments.assets) if arguments.assets else ()
    held_out = (*kind, "--layouts", str(arguments.layouts), "--layout-seed", str(TEST_LAYOUT_SEED + arguments.seed))
    train = (python, "-m", "pokevla_jax.cli.train", f"--config={arguments.config}", f"--config.data.path={out}/demos")
    train += (f"--config.seed={arguments.seed}",)
    if arguments.steps:
        train += (f"--config.num_steps={arguments.steps}",)
    evaluate = (python, "-m", "eval", "run", *suite, *held_out, *assets)

    def run(name: str, policy: str, *more: str) -> Phase:
        command = (*evaluate, "--policy", policy, "--run-dir", f"{out}/eval/{name}", *more)
        return Phase(f"evaluate-{name}", f"evaluate {name}", (command,))

    networks = {"policy": (), "blind": ("--config.data.zero_images=True",)}
    if arguments.layout_kind == "shared":
        # In a task's own scene sight alone tells the task; where objects are shared, only the instruction does.
        networks["no-language"] = ("--config.data.zero_language=True",)
    runs = [
        run(name, f"{out}/{name}", "--step", "best", "--videos", "all" if name == "policy" else "failures")
        for name in networks
    ]
    runs += [run("replay", f"replay:{out}/demos"), run("random", "random"), run("expert", "expert")]
    record = (python, "-m", "pokevla_jax.cli.record", *suite, "--episodes", str(arguments.episodes), *assets)
    record += (*kind, "--layout-seed", str(TRAIN_LAYOUT_SEED + arguments.seed), "--workers", "2")
    run_dirs = [part for r in runs for part in ("--run-dir", r.commands[0][r.commands[0].index("--run-dir") + 1])]
    workdirs = [part for name in networks for part in ("--workdir", f"{out}/{name}")]
    report = (python, "-m", "eval", "report", *run_dirs, *workdirs)
    return [
        Phase("record", "record demonstrations", ((*record, "--out", f"{out}/demos"),)),
        Phase(
            "train",
            f"train {', '.join(networks)}, side by side",
            tuple((*train, *change, "--workdir", f"{out}/{name}") for name, change in networks.items()),
        ),
        *runs,
        Phase("report", "write the report", ((*report, "--out", f"{out}/report.html"),)),
    ]


def run_phase(phase: Phase, out: Path) -> float:
    """Runs the phase, or reuses it, and returns its minutes."""
    marker = out / "phases" / f"{phase.name}.json"
    commands = [shlex.join(command) for command in phase.commands]
    if marker.exists() and (done := json.loads(marker.read_text()))["commands"] == commands:
        print(f"== {phase.title}: finished before ({done['minutes']:.1f} min), reused", flush=True)
        return done["minutes"]
    print(f"== {phase.title}", *commands, sep="\n   ", flush=True)
    start = time.monotonic()
    cores = sorted(os.sched_getaffinity(0))
    share = max(1, len(cores) // len(commands))
    children = []
    for index, command in enumerate(phase.commands):
        mine = cores[index * share : (index + 1) * share] or cores
        log = None if index == 0 else (out / "logs" / f"{phase.name}-{index}.log").open("w")
        # One core each beats two threads for one after the other: small matrices do not scale over threads.
        pin = partial(os.sched_setaffinity, 0, mine) if len(commands) > 1 else None
        output = {"stdout": log, "stderr": log and subprocess.STDOUT}
        children.append(subprocess.Popen(command, cwd=ROOT, preexec_fn=pin, **output))
    try:
        codes = [child.wait() for child in children]
    except BaseException:
        for child in children:
            child.terminate()
        raise
    if any(codes):
        failed = next(i for i, code in enumerate(codes) if code)
        where = f"; its output is in {out}/logs/{phase.name}-{failed}.log" if failed else ""
        sys.exit(f"quickstart: '{phase.title}' failed with exit status {codes[failed]}{where}")
    minutes = (time.monotonic() - start) / 60
    marker.write_text(json.dumps({"commands": commands, "minutes": minutes}, indent=2))
    print(f"== {phase.title}: {minutes:.1f} min", flush=True)
    return minutes


def summarise(out: Path, minutes: dict[str, float], arguments: argparse.Namespace) -> dict:
    """Collects the runs' summaries into ``summary.json``: the policy's figures on top, its controls beside them."""
    figures = ("success", "episodes", "success_rate", "interval95")
    runs = {path.parent.name: json.loads(path.read_text()) for path in sorted(out.glob("eval/*/summary.json"))}
    policy = runs["policy"]
    summary = {key: policy[key] for key in figures}
    summary |= {name: {key: runs[name][key] for key in figures} for name in runs if name != "policy"}
    summary["assets"] = policy["protocol"]["assets"]
    summary["minutes"] = {name: round(value, 2) for name, value in minutes.items()}
    summary["minutes"]["total"] = round(sum(minutes.values()), 2)
    summary["versions"] = policy["protocol"]["versions"]
    summary["settings"] = {key: value for key, value in vars(arguments).items() if key not in ("out", "fresh")}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return summary


def main() -> None:
    """Parses the command line and runs the phases in order."""
    parser = Parser(
        prog="quickstart.sh",
        description="Record demonstrations, train a small PokeVLA and its blind control, evaluate, report.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    made = "folder for everything it makes (default: %(default)s)"
    add("--out", type=Path, default=Path("runs/quickstart"), metavar="DIR", help=made)
    add("--fresh", action="store_true", help="delete what an earlier run left in --out first")
    seeded = "seed of network, demonstrations and held-out layouts (default: %(default)s)"
    add("--seed", type=int, default=0, metavar="N", help=seeded)
    tasks = "tasks of libero_object: 0 (alphabet soup), 0,3 or all (default: %(default)s)"
    add("--tasks", "--task", default="0", help=tasks)
    kinds = "each task's own scene, or one that shows the objects of many (default: %(default)s)"
    add("--layout-kind", choices=("moved", "shared"), default="moved", help=kinds)
    recorded = "demonstrations to record of each task (default: %(default)s)"
    add("--episodes", type=int, default=400, metavar="N", help=recorded)
    held_out = "held-out layouts of each task to evaluate on (default: %(default)s)"
    add("--layouts", type=int, default=20, metavar="N", help=held_out)
    add("--steps", type=int, metavar="N", help="training steps (default: the config's)")
    configuration = "training configuration (default: %(default)s)"
    add("--config", default="configs/libero_object_quickstart.py", metavar="FILE", help=configuration)
    assets = "LIBERO's asset folder (default: LIBERO_ASSETS, else what is installed or downloaded)"
    add("--assets", default=os.environ.get("LIBERO_ASSETS"), metavar="DIR", help=assets)
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    made_here = ("demos", "policy", "blind", "no-language", "eval", "phases", "logs")
    if arguments.fresh:
        for name in made_here:
            shutil.rmtree(out / name, ignore_errors=True)
    try:
        for name in ("phases", "logs"):
            (out / name).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"quickstart: cannot write to --out {out}: {error.strerror}; choose another folder")
    minutes = {phase.name: run_phase(phase, out) for phase in phases(out, arguments)}
    summary = summarise(out, minutes, arguments)
    low, high = summary["interval95"]
    controls = "".join(
        f"; {name} control {summary[name]['success']}/{summary[name]['episodes']}"
        for name in ("blind", "no-language")
        if name in summary
    )
    print(
        f"\nsuccess on unseen layouts: {summary['success']}/{summary['episodes']} = {summary['success_rate']:.0%} "
        f"(95 % interval {low:.0%} to {high:.0%}){controls}; "
        f"assets: {summary['assets']}; {summary['minutes']['total']:.1f} min\nreport: {out / 'report.html'}"
    )


if __name__ == "__main__":
    main()
