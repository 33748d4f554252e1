"""Counts and rates of a run: ``summary.json`` and the table on the terminal."""

from collections import Counter
from collections.abc import Iterable
from collections.abc import Mapping
from typing import Any

from eval.benchmarks.libero_plus import banner
from eval.breakdown import breakdown
from eval.breakdown import split
from eval.breakdown import tally
from eval.breakdown import task_of
from eval.breakdown import timing
from eval.results import Record
from eval.results import RunFolder
from eval.results import manifest_digest

# Of the reasons of errors, so many are listed.
MAX_REASONS = 3


def summarize(folder: RunFolder) -> dict[str, Any]:
    """Everything a reader of the run needs in one JSON object."""
    specs, protocol, known = folder.specs(), folder.protocol(), folder.records()
    records = [known[spec.id] for spec in specs if spec.id in known]
    names = {(spec.suite, spec.task): spec.task_name for spec in specs}
    parts = split(records, task_of)
    return {
        **breakdown(records),
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
            {"suite": suite, "task": task, "name": name} | tally(parts.get((suite, task), ()))
            for (suite, task), name in names.items()
        ],
        "timing": timing(records),
        "reasons": dict(reasons(records).most_common(MAX_REASONS)),
        "context": folder.context(),
    }


def reasons(records: Iterable[Record]) -> Counter[str]:
    """How many episodes ended in an error for each reason."""
    return Counter(record["reason"] for record in records if record["outcome"] == "error")


def percent(cell: Mapping[str, Any]) -> str:
    """``"65% (13/20, 95 % interval 43% to 82%)"``."""
    if cell["success_rate"] is None:
        return "no episode decided"
    low, high = cell["interval95"]
    return f"{cell['success_rate']:.0%} ({cell['success']}/{cell['decided']}, 95 % interval {low:.0%} to {high:.0%})"


def lines(summary: Mapping[str, Any]) -> list[str]:
    """The summary for a terminal; errors, missing episodes and stand-in assets are shouted."""
    label, control = summary["policy"]["label"], summary["context"].get("control", {}).get("name")
    label = label if control in (None, label) else f"{control} ({label})"
    text = [f"{label}: {percent(summary)}{_clustered(summary)}"]
    for name, key in (("suite", "suites"), ("category", "categories")):
        if len(summary[key]) > 1:
            width = max(len(row[name]) for row in summary[key])
            text += [f"  {row[name]:<{width}}  {percent(row)}{_clustered(row)}" for row in summary[key]]
    if summary["macro"]:
        mean = summary["macro"]
        text.append(f"  mean over {mean['over']} {mean['rate']:.1%}{_clustered(mean)}")
    if len(summary["tasks"]) > 1:
        width = max(len(task["name"]) for task in summary["tasks"])
        text += [f"  {task['name']:<{width}}  {percent(task)}" for task in summary["tasks"]]
    if summary["error"]:
        why = "; ".join(summary["reasons"])
        text.append(
            f"ERRORS: {summary['error']} episodes ended in an error, outside the rate ({why}); run again to retry them"
        )
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


def _clustered(cell: Mapping[str, Any]) -> str:
    if cell["clustered95"] is None:
        return ""
    low, high = cell["clustered95"]
    return f"; over tasks {low:.0%} to {high:.0%} (task-clustered bootstrap)"
