"""Counts and rates of a run: ``summary.json`` and the table on the terminal."""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from eval.benchmarks.libero_plus import banner
from eval.results import FINAL
from eval.results import Record
from eval.results import RunFolder
from eval.results import manifest_digest
from eval.statistics import wilson


def tally(records: Iterable[Record]) -> dict[str, Any]:
    """Success, failure and error counts with the rate over successes and failures and its Wilson interval.

    An error is no failure: it says nothing about the policy, so it is counted apart and left out of the rate. The rate
    is None when nothing was decided.
    """
    outcomes = Counter(record["outcome"] for record in records)
    decided = outcomes["success"] + outcomes["failure"]
    return {
        "success": outcomes["success"],
        "failure": outcomes["failure"],
        "error": outcomes["error"],
        "episodes": sum(outcomes.values()),
        "success_rate": outcomes["success"] / decided if decided else None,
        "interval95": list(wilson(outcomes["success"], decided)),
    }


def summarize(folder: RunFolder) -> dict[str, Any]:
    """Everything a reader of the run needs in one JSON object."""
    specs, protocol, known = folder.specs(), folder.protocol(), folder.records()
    records = [known[spec.id] for spec in specs if spec.id in known]
    tasks = dict.fromkeys((spec.suite, spec.task, spec.task_name) for spec in specs)
    return {
        **tally(records),
        "missing": len(specs) - len(records),
        "policy": dict(protocol.policy),
        "protocol": {
            "hash": protocol.hash,
            "simulation_hash": protocol.simulation_hash,
            **protocol.simulation,
            "versions": {**protocol.policy.get("versions", {}), **protocol.simulation["versions"]},
        },
        "manifest": manifest_digest(specs),
        "tasks": [
            {"suite": suite, "task": task, "name": name}
            | tally(r for r in records if (r["suite"], r["task"]) == (suite, task))
            for suite, task, name in tasks
        ],
        "timing": timing(records),
        "context": folder.context(),
    }


def timing(records: Iterable[Record]) -> dict[str, float]:
    """Totals over the decided episodes; ``steps_per_second`` leaves resets out, as published speeds do."""
    decided = [record for record in records if record["outcome"] in FINAL]
    totals: Counter[str] = Counter()
    for record in decided:
        totals.update({"steps": record["steps"], "looks": record["looks"]})
        totals.update({f"{part}_seconds": seconds for part, seconds in record["seconds"].items()})
    acting = sum(totals[f"{part}_seconds"] for part in ("physics", "rendering", "policy"))
    result: dict[str, float] = {key: round(value, 3) for key, value in totals.items()}
    if acting:
        result["steps_per_second"] = round(totals["steps"] / acting, 2)
    return result


def percent(summary: Mapping[str, Any]) -> str:
    """``"65 % (13/20, 95 % interval 43-82 %)"``."""
    if summary["success_rate"] is None:
        return "no episode decided"
    low, high = summary["interval95"]
    decided = summary["success"] + summary["failure"]
    return f"{summary['success_rate']:.0%} ({summary['success']}/{decided}, 95 % interval {low:.0%} to {high:.0%})"


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary for a terminal; errors, missing episodes and stand-in assets are shouted."""
    label, control = summary["policy"]["label"], summary["context"].get("control", {}).get("name")
    text = [f"{label if control in (None, label) else f'{control} ({label})'}: {percent(summary)}"]
    if len(summary["tasks"]) > 1:
        width = max(len(task["name"]) for task in summary["tasks"])
        text += [f"  {task['name']:<{width}}  {percent(task)}" for task in summary["tasks"]]
    if summary["error"]:
        text.append(f"ERRORS: {summary['error']} episodes ended in an error, outside the rate; run again to retry them")
    if summary["missing"]:
        text.append(f"INCOMPLETE: {summary['missing']} episodes have no result; run the same command again")
    if coverage := summary["context"].get("coverage"):
        text.append(f"COVERAGE: {banner(coverage)}")
    if "steps_per_second" in summary["timing"]:
        speed = summary["timing"]
        text.append(f"{speed['steps']:.0f} steps, {speed['steps_per_second']} per second of acting (resets excluded)")
    if summary["protocol"]["assets"] != "real":
        text.append(f"assets: {summary['protocol']['assets']} - not comparable with published numbers")
    return text
