"""What a report says, computed from run folders alone: groups, cells with their controls beside them, published tables.

Everything here is plain JSON types; the page shows it and ``report.json`` holds it.
"""

import functools
from collections import Counter
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import leaderboards
from eval import summary as summaries
from eval.breakdown import category_of
from eval.breakdown import cell
from eval.breakdown import level_of
from eval.breakdown import macro
from eval.breakdown import split
from eval.breakdown import steps_to_success
from eval.breakdown import suite_of
from eval.breakdown import tally
from eval.breakdown import task_of
from eval.breakdown import timing
from eval.compare import Pair
from eval.compare import check_comparable
from eval.compare import comparison
from eval.compare import pair
from eval.compare import split_pairs
from eval.control_data import read_controls
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.report_controls import Role
from eval.report_controls import role_of
from eval.report_controls import verdicts
from eval.results import FINAL
from eval.results import Record
from eval.results import RunFolder
from eval.results import by_base_id
from eval.results import decided

KINDS = {
    "moved": "moved layouts",
    "shared": "shared scenes",
    "libero": "the benchmark's stored initial states",
    "libero_plus": "LIBERO-Plus",
}


@dataclass(frozen=True)
class Run:
    """One run folder as a report reads it.

    Attributes:
        folder: where it is.
        label: what the report calls the policy; runs of one label are pooled.
        kind: key of ``KINDS``.
        role: what the policy is in a comparison.
        summary: the folder's.
        specs: the episodes, by the id without the control, which pairs have in common.
        records: their records so far, likewise.
    """

    folder: RunFolder
    label: str
    kind: str
    role: Role
    summary: Mapping[str, Any]
    specs: Mapping[str, EpisodeSpec]
    records: Mapping[str, Record]

    @functools.cached_property
    def decided(self) -> dict[str, Record]:
        """Successes and failures, likewise."""
        return decided(self.records)


def load_all(arguments: Sequence[str]) -> list[Run]:
    """The runs of all arguments; a control that is also given by its own folder is read once."""
    runs: dict[Path, Run] = {}
    for argument in arguments:
        for run in load_runs(argument):
            runs.setdefault(run.folder.path.resolve(), run)
    return list(runs.values())


def load_runs(argument: str) -> list[Run]:
    """The run of ``DIR`` or ``NAME=DIR`` and those of the controls inside it; without a name the policies' labels."""
    name, equals, path = argument.rpartition("=")
    if equals and Path(argument).is_dir():
        name, path = "", argument
    run = load_run(RunFolder(path), name)
    found = read_controls(path)
    labels = [control.folder.protocol().policy["label"] for control in found]
    controls = []
    for control, own in zip(found, labels, strict=True):
        # Two of one kind are told apart by the names that the command gave them.
        label = control.name if labels.count(own) > 1 else own
        controls.append(load_run(control.folder, f"{name}, {label}" if name else label))
    return [run, *controls]


def load_run(folder: RunFolder, label: str = "") -> Run:
    """The run of one folder, without the controls inside it."""
    summary, records, specs = summaries.summarize(folder), folder.records(), folder.specs()
    kinds = {kind_of(spec) for spec in specs}
    if len(kinds) > 1:
        raise EvaluationError(
            f"{folder.path} mixes {' and '.join(sorted(kinds))} episodes; evaluate each kind in its own folder"
        )
    return Run(
        folder=folder,
        label=label or summary["policy"]["label"],
        kind=kinds.pop(),
        role=role_of(summary["policy"]),
        summary=summary,
        specs={spec.base_id: spec for spec in specs},
        records=by_base_id(specs, records),
    )


def kind_of(spec: EpisodeSpec) -> str:
    """Which section the episode belongs to."""
    return spec.benchmark if spec.layout is None else spec.layout.kind


def sections(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """One section per kind of episode, each with its groups: runs of one label pooled over seeds.

    The first label of a section is what the others are compared with, on the episodes that both have decided.

    Raises:
        EvaluationError: when runs of one section were simulated under different conditions.
    """
    result = []
    for kind in dict.fromkeys(run.kind for run in runs):
        members = [run for run in runs if run.kind == kind]
        for member in members[1:]:
            check_comparable(members[0].folder, member.folder, "give them a report each")
        labels = dict.fromkeys(run.label for run in members)
        groups = [Group.of([run for run in members if run.label == label]) for label in labels]
        main, others = groups[0], groups[1:]
        matched = [Matched.of(main, other) for other in others]
        protocol = members[0].summary["protocol"]
        tasks = _rows(main, matched, task_of, ("suite", "task"))
        names = {(spec.suite, spec.task): spec.task_name for run in members for spec in run.specs.values()}
        for row in tasks:
            name = names[row["suite"], row["task"]].replace("_", " ")
            row["name"] = name if len({suite for suite, _ in names}) == 1 else f"{row['suite']}: {name}"
        result.append(
            {
                "kind": kind,
                "title": KINDS.get(kind, kind),
                "layout_seeds": layout_seeds(members),
                "groups": [main.facts(), *(other.facts() for other in matched)],
                "suites": _rows(main, matched, suite_of, ("suite",), clustered=True),
                "categories": _categories(main, matched),
                "tasks": tasks,
                "controls": verdicts(tasks, [(m.other.label, m.other.role) for m in matched]),
                "coverage": leaderboards.coverage(kind, main.records) if _published(kind, main) else None,
                "published": _published_table(kind, groups, protocol) if _published(kind, main) else None,
                "protocol": protocol,
                "protocols": [
                    {"label": run.label, "hash": run.summary["protocol"]["hash"], "run_dir": str(run.folder.path)}
                    for run in members
                ],
                "notes": sorted({note for run in members if (note := run.folder.protocol().unlike_training())}),
            }
        )
    return result


@dataclass(frozen=True)
class Group:
    """Runs of one label: seeds of one policy or of one control."""

    runs: Sequence[Run]
    records: Sequence[Record]

    @classmethod
    def of(cls, runs: Sequence[Run]) -> "Group":
        """The group with all its records."""
        return cls(runs, [record for run in runs for record in run.records.values()])

    @property
    def label(self) -> str:
        """What the report calls it."""
        return self.runs[0].label

    @property
    def role(self) -> Role:
        """What it is in a comparison."""
        return self.runs[0].role

    def facts(self, records: Sequence[Record] | None = None) -> dict[str, Any]:
        """What the report says about it over ``records``, by default all."""
        records = self.records if records is None else records
        errors = [record for record in self.records if record["outcome"] == "error"]
        total = cell(records)
        return {
            "label": self.label,
            "role": self.role.kind,
            "sense": self.role.sense,
            "meaning": self.role.meaning,
            "runs": len(self.runs),
            **total,
            "error": len(errors),
            "episodes": total["decided"] + len(errors),
            "missing": sum(len(run.specs) - len(run.records) for run in self.runs),
            "macro": macro(records),
            "text": summaries.percent(total),
            "steps": steps_to_success(records),
            "timing": timing(self.records),
            "errors": [{"reason": r, "episodes": n} for r, n in Counter(e["reason"] for e in errors).most_common()],
            "unpaired": 0,
            "difference": None,
        }


@dataclass(frozen=True)
class Matched:
    """A group on the episodes that it shares with the first one."""

    other: Group
    pairs: Sequence[Pair]

    @classmethod
    def of(cls, main: Group, other: Group) -> "Matched":
        """The pairs of both."""
        return cls(other, match(main.runs, other.runs))

    def facts(self) -> dict[str, Any]:
        """What the report says about it: rates on the shared episodes, and how many of its own are left out."""
        shared = second(self.pairs)
        own = sum(record["outcome"] in FINAL for record in self.other.records)
        return self.other.facts(shared) | {
            "unpaired": own - len(shared),
            "difference": comparison(self.pairs),
        }


def second(pairs: Sequence[Pair]) -> list[Record]:
    """The second records of the pairs, each once: one replay may stand against every seed."""
    return list({id(record): record for _, record in pairs}.values())


def match(main: Sequence[Run], other: Sequence[Run]) -> list[Pair]:
    """Pairs of records on the same episodes; each run of ``main`` is paired with the run that shares most with it.

    A run of ``other`` serves once while there are enough of them (seeds against seeds), else again (one replay against
    every seed).
    """
    pairs: list[Pair] = []
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
    return sorted({spec.layout.seed for run in runs for spec in run.specs.values() if spec.layout is not None})


def _rows(
    main: Group,
    others: Sequence[Matched],
    key: Callable[[Record], Any],
    names: Sequence[str],
    *,
    clustered: bool = False,
    keep: Callable[[Record], bool] = lambda record: True,
) -> list[dict[str, Any]]:
    """One row per value of ``key`` with a cell for every group: the first on all its episodes, others on the shared."""
    count = cell if clustered else tally
    first = split(filter(keep, main.records), key)
    parts = [split_pairs([pair for pair in other.pairs if keep(pair[0])], key) for other in others]
    rows = []
    for value, records in first.items():
        cells = [count(records) | {"difference": None}]
        for part in parts:
            pairs = part.get(value, [])
            cells.append(
                count(second(pairs)) | {"difference": comparison(pairs, clustered=clustered) if pairs else None}
            )
        values = value if isinstance(value, tuple) else (value,)
        rows.append(dict(zip(names, values, strict=True)) | {"cells": cells})
    return rows


def _categories(main: Group, others: Sequence[Matched]) -> list[dict[str, Any]]:
    """The rows of LIBERO-Plus's categories in the published order, each with a row per level."""
    board = leaderboards.leaderboards()["libero_plus"]
    rows = {row["category"]: row for row in _rows(main, others, category_of, ("category",), clustered=True)}
    ordered = [rows.pop(key) for key in board.columns if key in rows] + list(rows.values())
    for row in ordered:
        name = row["category"]
        row["title"] = board.columns.get(name, name)
        levels = _rows(main, others, level_of, ("level",), keep=_only(name))
        row["levels"] = sorted(levels, key=lambda level: level["level"])
    return ordered


def _only(category: str) -> Callable[[Record], bool]:
    return lambda record: category_of(record) == category


def _published(kind: str, main: Group) -> bool:
    """Whether there is a published table of such episodes."""
    boards = leaderboards.leaderboards()
    return kind in boards and any(suite_of(record) in boards[kind].episodes for record in main.records)


def _published_table(kind: str, groups: Sequence[Group], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The table with the first group's row and those of other policies; controls have no place in it."""
    ours = [group for group in groups if group is groups[0] or group.role.kind == "policy"]
    results = [leaderboards.Result(g.label, g.records, g.runs[0].summary["policy"]) for g in ours]
    return leaderboards.published_table(kind, results, protocol)
