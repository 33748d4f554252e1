"""Frames per second of the fast renderer beside robosuite's, side by side in one run, on one core.

    python tests/benchmarks/render_speed.py

Each round moves the arm and draws the same state with both renderers; medians over rounds, in milliseconds per frame,
for RGB alone and for RGB with mask and depth. The first frames, which build contexts and caches, are left out.
"""

import argparse
import json
import os
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from pokevla_jax.sim.assets import resolve_assets
from pokevla_jax.sim.environment import VIEWS
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.sim.tasks import load_task

SIZES = {"fast": 128, "robosuite": 256}
KINDS = {"rgb": {}, "rgb+mask+depth": {"mask": True, "depth": True}}


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--task", default="0")
    parser.add_argument("--assets")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    assets = resolve_assets(arguments.assets)
    task = load_task(arguments.suite, int(arguments.task))
    environments = {
        name: LiberoEnvironment(task, assets=assets, renderer=name, image_size=size) for name, size in SIZES.items()
    }
    milliseconds = {(name, view, kind): [] for name in SIZES for view in VIEWS for kind in KINDS}
    for environment in environments.values():
        environment.reset(load_init_states(task)[0])
    rng = np.random.default_rng(0)
    for index in range(arguments.rounds + 2):
        action = np.append(rng.uniform(-1, 1, 6), -1.0)
        for name, environment in environments.items():
            environment.step(action)
            for view in VIEWS:
                for kind, wanted in KINDS.items():
                    start = time.perf_counter()
                    environment.render(view, **wanted)
                    if index >= 2:
                        milliseconds[name, view, kind].append(1e3 * (time.perf_counter() - start))
    result = {"suite": arguments.suite, "task": task.name, "assets": assets.kind, "pixels": SIZES, "views": {}}
    for view in VIEWS:
        for kind in KINDS:
            median = {name: statistics.median(milliseconds[name, view, kind]) for name in SIZES}
            line = {f"{name}_ms": round(value, 2) for name, value in median.items()}
            line |= {"fast_frames_per_second": round(1e3 / median["fast"])}
            line |= {"ratio": round(median["robosuite"] / median["fast"], 1)}
            result["views"][f"{view} {kind}"] = line
    for environment in environments.values():
        environment.close()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
