"""Trains the quickstart's network without ``<SEG>`` supervision, without geometry alignment and without both.

    python tests/benchmarks/ablation.py runs/seed0 runs/seed1 runs/seed2

Each folder is a finished ``launch/quickstart.sh --seed S --layouts 40``: its demonstrations, its settings and its
held-out layouts are used again, its policy is the full network. Two networks train at a time, one core each. Prints
the four closed-loop rates, pooled over the folders, and each one's paired difference to the full network. Run again,
it continues where it stopped.
"""

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import Queue

ROOT = Path(__file__).resolve().parent.parent.parent
NO_SEG = "--config.model.segmentation.weight=0.0"
NO_GEOMETRY = "--config.model.geometry.weight=0.0"
VARIANTS = {"no-seg": (NO_SEG,), "no-geometry": (NO_GEOMETRY,), "neither": (NO_SEG, NO_GEOMETRY)}


def command_of(folder: Path, phase: str) -> list[str]:
    """The first command of a phase as the quickstart recorded it."""
    commands = json.loads((folder / "phases" / f"{phase}.json").read_text())["commands"]
    return shlex.split(commands[0])


def replaced(command: Sequence[str], option: str, value: str) -> list[str]:
    """``command`` with another value for ``option``."""
    index = command.index(option) + 1
    return [*command[:index], value, *command[index + 1 :]]


def train(folder: Path, variant: str, cores: "Queue[int]") -> None:
    """One variant on one core; its output goes to a log beside the quickstart's."""
    core = cores.get()
    try:
        command = replaced(command_of(folder, "train"), "--workdir", str(folder / variant))
        with (folder / "logs" / f"train-{variant}.log").open("w") as log:
            subprocess.run(
                [*command, *VARIANTS[variant]],
                check=True,
                cwd=ROOT,
                stdout=log,
                stderr=log,
                preexec_fn=partial(os.sched_setaffinity, 0, {core}),
            )
    finally:
        cores.put(core)


def main() -> None:
    """Trains, evaluates and compares."""
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    folders = [Path(argument).resolve() for argument in sys.argv[1:]]
    cores: Queue[int] = Queue()
    for core in sorted(os.sched_getaffinity(0))[:2]:
        cores.put(core)
    jobs = [(folder, variant) for folder in folders for variant in VARIANTS]
    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(train, *job, cores) for job in jobs]:
            done.result()
    for folder, variant in jobs:
        command = replaced(command_of(folder, "evaluate-policy"), "--policy", str(folder / variant))
        command = replaced(command, "--run-dir", str(folder / "eval" / variant))
        subprocess.run(replaced(command, "--videos", "none"), check=True, cwd=ROOT)
    full = ",".join(str(folder / "eval" / "policy") for folder in folders)
    for variant in VARIANTS:
        print(f"\nfull network against {variant}", flush=True)
        other = ",".join(str(folder / "eval" / variant) for folder in folders)
        subprocess.run([sys.executable, "-m", "eval", "compare", full, other], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
