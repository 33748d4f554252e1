"""What a report says, computed from run folders alone: groups, pooled rates, paired differences, timing."""

from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import summary as summaries
from eval.compare import comparison
from eval.compare import pair
from eval.controls import ABLATIONS
from eval.errors import EvaluationError
from eval.results import FINAL
from eval.results import Record
from eval.results import RunFolder

# What each label means, for readers who meet it the first time.
MEANINGS = {
    "policy": "the trained network",
    "blind-trained": "the same network, trained and run with its images zeroed",
    "no-language-trained": "the same network, trained and run without the instruction",
    "replay": "a recorded success, repeated action by action",
    "random": "uniform random actions",
    "expert": "a script that reads the simulator's state",
    **ABLATIONS,
}
KINDS = {
    "moved": "moved layouts",
    "shared": "shared scenes",
    "stored": "the benchmark's stored initial states",
}


@dataclass(frozen=True)
class Run:
    """One run folder as a report reads it."""

    folder: RunFolder
    label: str
    kind: str
    summary: Mapping[str, Any]
    records: Mapping[str, Record]

    @property
    def decided(self) -> dict[str, Record]:
        """Successes and failures by the id of the episode without its control, so that controls pair."""
        known = self.records.items()
        return {record.get("base_id", key): record for key, record in known if record["outcome"] in FINAL}


def load_run(argument: str) -> Run:
    """The run of ``DIR`` or ``NAME=DIR``; without a name its policy's label is used."""
    name, equals, path = argument.rpartition("=")
    if equals and Path(argument).is_dir():
        name, path = "", argument
    folder = RunFolder(path)
    specs, summary = folder.specs(), summaries.summarize(folder)
    kinds = {"stored" if spec.layout is None else spec.layout.kind for spec in specs}
    if len(kinds) > 1:
        raise EvaluationError(
            f"{path} mixes {' and '.join(sorted(kinds))} episodes; evaluate each kind in its own folder"
        )
    return Run(folder, name or summary["policy"]["label"], kinds.pop(), summary, folder.records())


def sections(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One section per kind of episode, each with its groups: runs of one label pooled over seeds.

    The first label of a section is what the others are compared with.

    Raises:
        EvaluationError: when runs of one section were simulated under different conditions.
    """
    result = []
    for kind in dict.fromkeys(run.kind for run in runs):
        members = [run for run in runs if run.kind == kind]
        hashes = {run.summary["protocol"]["simulation_hash"]: run for run in members}
        if len(hashes) > 1:
            a, b = list(hashes.values())[:2]
            change = next(
                line for line in a.folder.protocol().differences(b.folder.protocol()) if line.startswith("simulation")
            )
            raise EvaluationError(
                f"{a.folder.path} and {b.folder.path} were simulated differently ({change}); give them a report each"
            )
        labels = dict.fromkeys(run.label for run in members)
        groups = [[run for run in members if run.label == label] for label in labels]
        result.append(
            {
                "kind": kind,
                "title": KINDS[kind],
                "layout_seeds": layout_seeds(members),
                "groups": [_group(group, groups[0]) for group in groups],
                "tasks": _tasks(groups),
                "protocol": members[0].summary["protocol"],
                "notes": sorted({note for run in members if (note := run.folder.protocol().unlike_training())}),
            }
        )
    return result


def _group(group: Sequence[Run], main: Sequence[Run]) -> dict[str, Any]:
    records = [record for run in group for record in run.records.values()]
    pooled = summaries.tally(records)
    return {
        "label": group[0].label,
        "meaning": MEANINGS.get(group[0].summary["policy"]["label"], ""),
        "runs": len(group),
        "missing": sum(run.summary["missing"] for run in group),
        **pooled,
        "decided": pooled["success"] + pooled["failure"],
        "text": summaries.percent(pooled),
        "timing": summaries.timing(records),
        "difference": None if group[0] is main[0] else comparison(match(main, group)),
        "errors": [record for record in records if record["outcome"] == "error"],
    }


def match(main: Sequence[Run], other: Sequence[Run]) -> list[tuple[Record, Record]]:
    """Pairs of records on the same episodes; each run of ``main`` is paired with the run that shares most with it.

    A run of ``other`` serves once while there are enough of them (seeds against seeds), else again (one replay against
    every seed).
    """
    pairs: list[tuple[Record, Record]] = []
    free = list(other)
    for run in main:
        candidates = free or list(other)
        best = max(candidates, key=lambda o: len(run.decided.keys() & o.decided.keys()))
        if len(other) >= len(main):
            free.remove(best)
        pairs += pair(run.decided, best.decided)
    return pairs


def layout_seeds(runs: Sequence[Run]) -> list[int]:
    """The layout seeds that the runs were evaluated on."""
    seeds = {spec.layout.seed for run in runs for spec in run.folder.specs() if spec.layout is not None}
    return sorted(seeds)


def _tasks(groups: Sequence[Sequence[Run]]) -> list[dict[str, Any]]:
    """One row per task with every group's pooled rate."""
    names = dict.fromkeys(
        (task["suite"], task["task"], task["name"])
        for group in groups
        for run in group
        for task in run.summary["tasks"]
    )
    rows = []
    for suite, task, name in names:
        cells = []
        for group in groups:
            records = [
                record
                for run in group
                for record in run.records.values()
                if (record["suite"], record["task"]) == (suite, task)
            ]
            cells.append(summaries.tally(records) | {"text": summaries.percent(summaries.tally(records))})
        rows.append({"suite": suite, "task": task, "name": name.replace("_", " "), "cells": cells})
    return rows


def headline(section: Mapping[str, Any]) -> str:
    """One sentence: the first group's rate, its control's rate, and the paired difference."""
    main, *others = section["groups"]
    if main["success_rate"] is None:
        return "No episode was decided."
    where = {"moved": "layouts it never saw", "shared": "shared scenes it never saw", "stored": "stored initial states"}
    subject = "The policy" if main["label"] == "policy" else f"{main['label']}"
    text = f"{subject} succeeds on {main['text']} of {where[section['kind']]}"
    control = next((g for g in others if g["label"].endswith("-trained") and g["success_rate"] is not None), None)
    if control is not None:
        low, high = control["difference"]["difference_interval95"]
        text += (
            f"; the same network {'trained blind' if control['label'] == 'blind-trained' else control['label']} on "
            f"{control['text']}: a paired difference of {100 * control['difference']['difference']:+.0f} points "
            f"({100 * low:+.0f} to {100 * high:+.0f})"
        )
    rest = [g for g in others if g is not control and g["success_rate"] is not None]
    if rest:
        text += ". " + ", ".join(f"{g['label']} {g['success_rate']:.0%}" for g in rest).capitalize()
    return text + "."


def warnings(all_sections: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a reader must know before the numbers."""
    lines = []
    kinds = {section["protocol"]["assets"] for section in all_sections}
    if kinds != {"real"}:
        lines.append(
            "Stand-in assets among the real ones: physics is LIBERO's, pixels are not. These rates are not comparable "
            "with published numbers."
            if "standins" not in kinds
            else "Stand-in assets: shapes and pixels are this project's own. These rates are not comparable with "
            "published numbers."
        )
    if not all(section["protocol"]["published"] for section in all_sections):
        lines.append("Renderer, image size or resets differ from the published protocol (see the end of the page).")
    for section in all_sections:
        lines += [f"{note}." for note in section["notes"]]
        for group in section["groups"]:
            if group["error"]:
                reasons = sorted({record["reason"] for record in group["errors"]})
                lines.append(
                    f"{group['label']}, {section['title']}: {group['error']} episodes ended in an error and are in no "
                    f"rate ({'; '.join(reasons[:3])})."
                )
            if group["missing"]:
                lines.append(f"{group['label']}, {section['title']}: {group['missing']} episodes were not run.")
    return lines
