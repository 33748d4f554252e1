"""How many outcomes flip when a policy's batches are padded to another size.

A network's sums are done in another order for another batch size, so its actions differ in their last bits, and a
contact that hangs by a thread can then go the other way. The same episodes are run once per size, one after the other
in this process; each size is what ``--exact N`` computes. Also counts the actions that change with the rest of the
batch at one size, of which there should be none.

    python tests/benchmarks/bucket_flips.py --policy runs/policy --tasks 0-9 --layouts 5 --sizes 1 2 4 8
"""

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from eval.agents import CheckpointAgent
from eval.benchmarks import build_manifest
from eval.episode import run_episode
from eval.presets import PRESETS
from eval.run import Options
from eval.scenes import LiberoScenes
from eval.statistics import wilson
from pokevla_jax.policy import Policy
from pokevla_jax.sim.assets import resolve_assets


def main() -> None:
    """Prints one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--policy", required=True)
    parser.add_argument("--step", type=int)
    parser.add_argument("--suite", default="libero_object")
    parser.add_argument("--tasks", default="all")
    parser.add_argument("--init-states")
    parser.add_argument("--layouts", type=int)
    parser.add_argument("--layout-seed", type=int, default=90000)
    parser.add_argument("--layout-kind", default="moved")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--assets")
    arguments = parser.parse_args()
    names = ("policy", "suite", "tasks", "init_states", "layouts", "layout_seed", "layout_kind", "max_steps")
    specs = build_manifest(Options(run_dir=Path(), **{name: getattr(arguments, name) for name in names}))
    scenes = LiberoScenes(resolve_assets(arguments.assets), PRESETS["pokevla"])
    policies = {}
    for size in arguments.sizes:
        policies[size] = Policy.load(arguments.policy, step=arguments.step, batch_sizes=(size,))
        policies[size].warm_up()

    ends: dict[int, list[tuple[bool, int, str]]] = {size: [] for size in policies}
    looks: list[dict[str, Any]] = []
    environment, scene, start = None, "", time.perf_counter()
    for number, spec in enumerate(specs, start=1):
        if spec.scene != scene:
            if environment is not None:
                environment.close()
            environment, scene = scenes.build(spec), spec.scene
        for size, policy in policies.items():
            scenes.place(environment, spec)
            if size == arguments.sizes[0]:
                looks.append(environment.observe() | {"prompt": spec.prompt})
            agent = CheckpointAgent(lambda seen, policy=policy: policy.infer([seen])[0])
            rollout = run_episode(environment, spec, agent)
            ends[size].append((rollout.success, rollout.steps, rollout.final_state))
        print(f"{number}/{len(specs)} {[ends[size][-1][0] for size in policies]}", file=sys.stderr, flush=True)

    actions = {size: policy.infer(looks) for size, policy in policies.items()}
    pairs = {}
    for one, other in itertools.combinations(policies, 2):
        flipped = sum(a[0] != b[0] for a, b in zip(ends[one], ends[other], strict=True))
        pairs[f"{one}-{other}"] = {
            "outcomes_flipped": flipped,
            "interval95": [round(x, 4) for x in wilson(flipped, len(specs))],
            "final_states_changed": sum(a[2] != b[2] for a, b in zip(ends[one], ends[other], strict=True)),
            "largest_difference_of_first_actions": float(np.abs(actions[one] - actions[other]).max()),
        }
    result = {
        "episodes": len(specs),
        "successes": {size: sum(end[0] for end in ends[size]) for size in policies},
        "pairs": pairs,
        "any_flip": sum(len({ends[size][i][0] for size in policies}) > 1 for i in range(len(specs))),
        "chunks_changed_by_the_rest_of_the_batch": {
            size: changed_by_company(policy, looks) for size, policy in policies.items()
        },
        "minutes": round((time.perf_counter() - start) / 60, 1),
    }
    print(json.dumps(result, indent=1))


def changed_by_company(policy: Policy, looks: list[dict[str, Any]]) -> int:
    """How many first chunks differ in any bit between alone and together with others, in another order."""
    alone = [policy.infer([seen])[0] for seen in looks]
    order = np.random.default_rng(0).permutation(len(looks))
    together = policy.infer([looks[i] for i in order])
    return sum(not np.array_equal(alone[i], row) for i, row in zip(order, together, strict=True))


if __name__ == "__main__":
    main()
