"""Evaluation steps per second: images rendered when the policy looks, beside images rendered at every step.

Both ways run the same episodes with the same actions in the same process, in turn, on one core; resets are left out,
no video is made. The policy is a stub (uniform random chunks), so the figure is the simulator's and the evaluator's.

    python tests/benchmarks/evaluation_speed.py --episodes 4 --chunks 8 5
"""

import argparse
import dataclasses
import json
import os
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from eval.agents import RandomAgent
from eval.benchmarks import build_manifest
from eval.episode import run_episode
from eval.presets import PRESETS
from eval.presets import Preset
from eval.run import Options
from eval.scenes import LiberoScenes
from pokevla_jax.sim.assets import resolve_assets


class LookingAgent(RandomAgent):
    """Random actions that ask for an image first, as a policy does."""

    needs_images = True


def preset_of(renderer: str) -> Preset:
    """The project's own conditions with a renderer, at the size that it is used at."""
    size = 256 if renderer == "robosuite" else 128
    return dataclasses.replace(PRESETS["pokevla"], renderer=renderer, image_size=size)


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--episodes", type=int, default=4)
    parser.add_argument("--steps", type=int, default=96, help="steps per episode")
    parser.add_argument("--chunks", type=int, nargs="+", default=[8], help="steps per look")
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--task", default="0")
    parser.add_argument("--assets")
    parser.add_argument("--renderer", choices=("fast", "robosuite"), default="fast")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    assets = resolve_assets(arguments.assets)
    scenes = LiberoScenes(assets, preset_of(arguments.renderer))
    options = Options(
        policy="random",
        run_dir=Path(),
        suite=arguments.suite,
        tasks=arguments.task,
        init_states=f"0-{arguments.episodes - 1}",
        max_steps=arguments.steps,
    )
    specs = build_manifest(options)
    environment = scenes.build(specs[0])
    environment.observe()  # the first image builds the renderer
    result = {"renderer": arguments.renderer, "assets": assets.kind, "episodes": len(specs), "chunks": {}}
    for chunk in arguments.chunks:
        seconds: Counter[str] = Counter()
        steps: Counter[str] = Counter()
        ends = set()
        for spec in specs:
            for name, every in (("on_demand", False), ("every_step", True)):
                scenes.place(environment, spec)
                rollout = run_episode(environment, spec, LookingAgent(chunk), render_every_step=every)
                seconds[name] += sum(rollout.seconds.values())
                steps[name] += rollout.steps
                ends.add((spec.id, rollout.final_state))
        if len(ends) != len(specs):
            sys.exit("the two ways ended in different states; the figures cannot be compared")
        speeds = {name: round(steps[name] / seconds[name], 1) for name in seconds}
        ratio = round(speeds["on_demand"] / speeds["every_step"], 2)
        result["chunks"][chunk] = {"steps_per_second": speeds, "ratio": ratio}
    environment.close()
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
