"""An evaluation on two Ray nodes while its processes are killed: each episode exactly once, and as undisturbed.

Every part is first run undisturbed on this machine, then on a cluster of two Ray nodes of this machine while
``--kills`` random ``kill -9`` hit simulators, policy processes, a whole node and the driver, which is then started
again with the same command. Prints one JSON object, and ends with status 1 if any episode is missing, recorded twice or
ends otherwise (success, steps, hash of the final state).

    python tests/benchmarks/kill_drill.py --out runs/drill --kills 10 \\
        --part expert:libero_object:"--init-states 0-4" --part expert:libero_goal:"--tasks 0-4 --init-states 0-9" \\
        --part runs/soup:libero_object:"--init-states 0-9"
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from eval.merge import merge
from eval.results import RunFolder
from tests.eval import drill

BUILT_IN = ("expert", "random")


def main() -> int:
    """Runs the drill."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs; undisturbed ones there are kept")
    parser.add_argument("--part", action="append", required=True, metavar="POLICY:SUITE:OPTIONS", help="of eval run")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2, help="simulators of each node")
    parser.add_argument("--exact", type=int, default=8, help="batch size of networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hours", type=float, default=6.0, help="give up a part after so long")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    parts = [part_command(part, arguments.exact) for part in arguments.part]

    start = time.monotonic()
    calm = [run_calm(command, arguments, number) for number, command in enumerate(parts)]
    calm_minutes = (time.monotonic() - start) / 60
    kills = share_out(parts, [len(ends) for ends in calm], arguments)

    result: dict = {"parts": [], "kills": []}
    start = time.monotonic()
    with drill.two_nodes(cpus=arguments.workers) as nodes:
        for number, command in enumerate(parts):
            run_dir = arguments.out / f"drill-{number}"
            if run_dir.exists():
                sys.exit(f"{run_dir} exists; a drill begins with nothing recorded: remove it or give another --out")
            words = [sys.executable, "-m", "eval", *command, "--run-dir", str(run_dir), "--address", nodes.address]
            environment = nodes.environment | {"PYTHONPATH": str(drill.ROOT)}

            def begin(words: list[str] = words, environment: dict[str, str] = environment) -> subprocess.Popen:
                with (arguments.out / "drivers.log").open("a") as log:
                    return subprocess.Popen(words, cwd=drill.ROOT, env=environment, stdout=log, stderr=log)

            fight = drill.Drill(nodes, begin, run_dir, arguments.seed + number)
            fight.run(kills[number], timeout=3600 * arguments.hours)
            found = drill.ends(run_dir)
            different = sorted(key for key in calm[number] if found.get(key) != calm[number][key])
            records = RunFolder(run_dir).attempts()
            # Says the same in another way, and refuses other protocols.
            merged = merge([RunFolder(arguments.out / f"calm-{number}"), RunFolder(run_dir)])
            if (len(merged.duplicates) == len(calm[number]) and merged.complete) == bool(different):
                sys.exit(f"merging {run_dir} with the undisturbed run contradicts their comparison")
            result["kills"] += [{"part": number, "victim": victim, "records": n} for victim, n in fight.done]
            result["parts"].append(
                {
                    "command": shlex.join(command),
                    "episodes": len(calm[number]),
                    "recorded": len(found),
                    "successes": sum(end[0] == "success" for end in found.values()),
                    "different": different,
                    "attempts_above_one": sum(record["attempts"] > 1 for record in records),
                    "simulator_processes": len({(record["host"], record["process"]) for record in records}),
                }
            )
            print(json.dumps(result["parts"][-1]), file=sys.stderr, flush=True)
    result |= {"minutes": round((time.monotonic() - start) / 60, 1), "calm_minutes": round(calm_minutes, 1)}
    result["equal"] = all(p["recorded"] == p["episodes"] and not p["different"] for p in result["parts"])
    print(json.dumps(result, indent=1))
    return 0 if result["equal"] else 1


def part_command(part: str, exact: int) -> list[str]:
    """``POLICY:SUITE:OPTIONS`` as arguments of ``python -m eval``."""
    policy, suite, options = part.split(":", 2)
    command = ["run", "--policy", policy, "--suite", suite, *shlex.split(options)]
    return command if policy in BUILT_IN else [*command, "--exact", str(exact)]


def run_calm(command: list[str], arguments: argparse.Namespace, number: int) -> dict[str, tuple]:
    """The part undisturbed, on as many simulators as one node has; done already, it is only read."""
    run_dir = arguments.out / f"calm-{number}"
    words = [sys.executable, "-m", "eval", *command, "--run-dir", str(run_dir), "--workers", str(arguments.workers)]
    subprocess.run(words, cwd=drill.ROOT, check=True)
    return drill.ends(run_dir)


def share_out(parts: list[list[str]], counts: list[int], arguments: argparse.Namespace) -> list[list[drill.Kill]]:
    """The kills over the parts: every kind of victim, policy processes where there is a network.

    Parts share them by their numbers of episodes.
    """
    shares, given = [], 0
    for number in range(len(parts)):
        upto = round(arguments.kills * sum(counts[: number + 1]) / sum(counts))
        shares.append(upto - given)
        given = upto
    kills = []
    for number, (command, count, share) in enumerate(zip(parts, counts, shares, strict=True)):
        network = command[command.index("--policy") + 1] not in BUILT_IN
        victims = drill.VICTIMS if network else tuple(name for name in drill.VICTIMS if name != "policy")
        kills.append(drill.schedule(share, count, victims, arguments.seed + number))
    return kills


if __name__ == "__main__":
    sys.exit(main())
