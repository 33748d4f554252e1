"""What all episodes of a benchmark cost in processor time, from a sample of every suite and category.

A stub acts: random chunks, both cameras rendered for each of them, and the whole step budget used, which is what a
policy that always fails costs; the network itself is not in it. Every sampled episode runs in this process on one core,
and its processor time is taken apart: compiling its scene, bringing it to its start, and running it. A stratum (suite
and category) then costs its episodes' means, and one compilation for each scene it has, as the evaluator groups
episodes by scene.

    python tests/benchmarks/core_hours.py --benchmark libero --each 3
    python tests/benchmarks/core_hours.py --benchmark libero_plus --each 3 --renderer robosuite
"""

import argparse
import collections
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from rich.console import Console
from rich.progress import track

from eval.benchmarks import build_manifest
from eval.benchmarks.libero_plus import Choices
from eval.benchmarks.libero_plus import coverage
from eval.benchmarks.sampling import stratified
from eval.episode import run_episode
from eval.manifest import EpisodeSpec
from eval.run import Options
from eval.scenes import LiberoScenes
from pokevla_jax.sim.assets import resolve_assets
from tests.benchmarks.evaluation_speed import LookingAgent
from tests.benchmarks.evaluation_speed import preset_of

Stratum = tuple[str, str]


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--benchmark", choices=("libero", "libero_plus"), required=True)
    parser.add_argument("--each", type=int, default=3, help="sampled episodes of each suite and category")
    parser.add_argument("--renderer", choices=("fast", "robosuite"), default="fast")
    parser.add_argument("--plus")
    parser.add_argument("--assets")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    options = Options(policy="random", run_dir=Path(), benchmark=arguments.benchmark, suite="all", plus=arguments.plus)
    plus = Choices.of(options) if arguments.benchmark == "libero_plus" else None
    scenes = LiberoScenes(resolve_assets(arguments.assets), preset_of(arguments.renderer), plus)

    strata: dict[Stratum, list[EpisodeSpec]] = collections.defaultdict(list)
    for spec in build_manifest(options):
        strata[spec.suite, spec.category or ""].append(spec)
    samples = {
        key: stratified(specs, arguments.each, name=lambda spec: spec.id, stratum=lambda spec: None, seed=0)
        for key, specs in strata.items()
    }
    rows = []
    for key, sample in track(samples.items(), console=Console(stderr=True)):
        rows.append(priced(key, strata[key], [measure(scenes, spec) for spec in sample]))
    total = {"episodes": sum(row["episodes"] for row in rows), "core_hours": sum(row["core_hours"] for row in rows)}
    not_run = coverage(options)["need_assets"] if plus else {}
    print(json.dumps({"renderer": arguments.renderer, "strata": rows, "total": total, "not_run": not_run}, indent=1))


def measure(scenes: LiberoScenes, spec: EpisodeSpec) -> dict[str, float]:
    """Seconds of processor time of one episode, by what they are spent on."""
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.process_time()
        result = work()
        seconds[name] = time.process_time() - start
        return result

    environment = timed("scene", lambda: scenes.build(spec))
    # The first start and the first image of a scene build what the later ones find.
    timed("first", lambda: (scenes.place(environment, spec), environment.observe()))
    timed("start", lambda: scenes.place(environment, spec))
    timed("run", lambda: run_episode(environment, spec, LookingAgent(), interface=scenes.interface))
    environment.close()
    return seconds


def priced(key: Stratum, specs: list[EpisodeSpec], measured: list[dict[str, float]]) -> dict[str, Any]:
    """What all episodes of a stratum cost."""
    means = {name: statistics.fmean(seconds[name] for seconds in measured) for name in measured[0]}
    count, compiled = len(specs), len({spec.scene for spec in specs})
    scene = means["scene"] + max(0.0, means["first"] - means["start"])
    hours = (count * (means["start"] + means["run"]) + compiled * scene) / 3600
    return {
        "suite": key[0],
        "category": key[1],
        "episodes": count,
        "scenes": compiled,
        "sampled": len(measured),
        "seconds": {"scene": round(scene, 2), "start": round(means["start"], 2), "run": round(means["run"], 2)},
        "run_range": [round(edge([seconds["run"] for seconds in measured]), 2) for edge in (min, max)],
        "core_hours": round(hours, 3),
    }


if __name__ == "__main__":
    main()
