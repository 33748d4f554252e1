"""Published tables: their columns, rows and aggregation, and what keeps a result of ours from standing among them.

The rows are data (``leaderboards.toml``), each with its source and its protocol.
"""

import dataclasses
import functools
import tomllib
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from typing import Literal

from eval.breakdown import category_of
from eval.breakdown import split
from eval.breakdown import suite_of
from eval.breakdown import tally
from eval.manifest import digest
from eval.results import FINAL
from eval.results import Record

PATH = Path(__file__).parent / "leaderboards.toml"
Training = Literal["libero", "libero_plus"]
TRAINING = {
    "libero": "trained on LIBERO's demonstrations only",
    "libero_plus": "trained on LIBERO-Plus's demonstrations too",
}
# What makes an episode the one that it is in a published table: not its prompt, budget, seed or control.
START = ("suite", "task", "task_name", "init_state", "perturbation", "category", "level")


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One row as published.

    Attributes:
        model: its name there.
        parameters: their number, in words.
        rates: percent by column.
        total: percent, as printed.
        training: on which demonstrations.
        protocol: how it was evaluated, as far as the source says.
        source: where it was read.
        remark: what is odd about it.
    """

    model: str
    parameters: str
    rates: Mapping[str, float]
    total: float
    training: Training
    protocol: str
    source: str
    remark: str = ""


@dataclass(frozen=True, kw_only=True)
class Leaderboard:
    """One benchmark's published table.

    Attributes:
        title: the benchmark's name.
        columns: key -> heading, in the published order: suites of LIBERO, categories of LIBERO-Plus.
        total: heading of the last column.
        total_rule: what that column is the mean of.
        steps: suite -> step budget of the published numbers.
        published: the rest of their protocol, in a line.
        episodes: suite -> column -> number of episodes.
        rows: the published rows.
    """

    title: str
    columns: Mapping[str, str]
    total: str
    total_rule: str
    steps: Mapping[str, int]
    published: str
    episodes: Mapping[str, Mapping[str, int]]
    rows: tuple[PublishedRow, ...]

    def counts(self, suites: Iterable[str] | None = None) -> dict[str, int]:
        """Episodes of each column, in all suites or in those given."""
        chosen = self.episodes if suites is None else suites
        return {key: sum(self.episodes[suite].get(key, 0) for suite in chosen) for key in self.columns}


@dataclass(frozen=True)
class Result:
    """One of our results: its label, its records, and the policy half of its protocol."""

    label: str
    records: Sequence[Record]
    policy: Mapping[str, Any]


@functools.cache
def leaderboards() -> dict[str, Leaderboard]:
    """Benchmark -> its published table."""
    boards = {}
    for name, values in tomllib.loads(PATH.read_text()).items():
        rows = tuple(PublishedRow(**row) for row in values.pop("rows"))
        boards[name] = Leaderboard(rows=rows, **values)
    return boards


def pooled(rates: Mapping[str, float], counts: Mapping[str, int]) -> float:
    """The rate over all episodes: each column weighs what it has episodes. The rule of published totals."""
    return sum(rates[key] * counts[key] for key in counts) / sum(counts.values())


def macro(rates: Mapping[str, float]) -> float:
    """The plain mean of the columns, which some tables print instead."""
    return sum(rates.values()) / len(rates)


def column_of(name: str, record: Mapping[str, Any]) -> str | None:
    """The column that the episode counts in."""
    return suite_of(record) if name == "libero" else category_of(record)


def coverage(name: str, records: Iterable[Record]) -> dict[str, Any]:
    """How much of the benchmark was decided: in the suites that ``records`` touch, by column and in all.

    An episode that was run with several seeds counts once.
    """
    board = leaderboards()[name]
    starts = {digest([record.get(key) for key in START]): record for record in records if record["outcome"] in FINAL}
    suites = [suite for suite in board.episodes if any(suite_of(record) == suite for record in starts.values())]
    expected = board.counts(suites)
    found = {key: len(part) for key, part in split(starts.values(), lambda r: column_of(name, r)).items()}
    return {
        "title": board.title,
        "suites": suites,
        "all_suites": len(suites) == len(board.episodes),
        "expected": sum(expected.values()),
        "decided": len(starts),
        "columns": [
            {"key": key, "title": board.columns[key], "expected": count, "decided": found.get(key, 0)}
            for key, count in expected.items()
            if count
        ],
    }


def published_table(name: str, ours: Sequence[Result], protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Our rows in the published layout with why they differ, and the published rows in blocks of one training each."""
    board = leaderboards()[name]
    return {
        "title": board.title,
        "columns": dict(board.columns),
        "total": board.total,
        "total_rule": board.total_rule,
        "published": board.published,
        "ours": [_our_row(name, result, protocol) for result in ours],
        "blocks": [
            {"training": text, "rows": [_published_row(board, row) for row in rows]}
            for training, text in TRAINING.items()
            if (rows := sorted((r for r in board.rows if r.training == training), key=lambda row: -row.total))
        ],
    }


def _our_row(name: str, result: Result, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """The total is the published rule's, over the suites that were run, and needs all of their columns."""
    board, covered = leaderboards()[name], coverage(name, result.records)
    cells = {key: tally(part) for key, part in split(result.records, lambda r: column_of(name, r)).items()}
    weights = {key: count for key, count in board.counts(covered["suites"]).items() if count}
    rates = {key: cells[key]["success_rate"] for key in weights if key in cells}
    complete = bool(weights) and len(rates) == len(weights) and None not in rates.values()
    return {
        "label": result.label,
        "cells": {key: cells.get(key, tally(())) for key in board.columns},
        "total": pooled(rates, weights) if complete else None,
        "macro": macro(rates) if complete else None,
        "unlike": unlike_published(name, result, protocol),
    }


def _published_row(board: Leaderboard, row: PublishedRow) -> dict[str, Any]:
    return dataclasses.asdict(row) | {
        "rates": {key: row.rates.get(key) for key in board.columns},
        "macro": round(macro(row.rates), 1) if len(row.rates) == len(board.columns) else None,
    }


def unlike_published(name: str, result: Result, protocol: Mapping[str, Any]) -> list[str]:
    """Why a result may not be compared with published rows; empty where it may."""
    board, covered, policy = leaderboards()[name], coverage(name, result.records), result.policy
    reasons = []
    if policy["kind"] in ("expert", "random", "replay"):
        reasons.append(f"{policy['kind']} is no trained policy")
    if protocol["assets"] != "real":
        reasons.append(f"assets are {protocol['assets']}: pixels are not LIBERO's")
    if protocol["renderer"] != "robosuite":
        reasons.append(f"rendered by {protocol['renderer']}, published evaluations use robosuite")
    if name == "libero_plus":
        plus = protocol.get("libero_plus", {})
        if protocol["prompt"] != "official":
            reasons.append(f"{protocol['prompt']} prompts, published evaluations append the file name's suffix")
        if plus.get("robot", "official") != "official":
            reasons.append(f"{plus['robot']} robot poses, in published evaluations the arm drifts towards them")
    if not reasons and not protocol["published"]:
        reasons.append("image size, resets or files are not those of published evaluations")
    budgets = {suite_of(record): record["max_steps"] for record in result.records}
    if other := [f"{n} steps in {suite}" for suite, n in budgets.items() if n != board.steps.get(suite, n)]:
        reasons.append(f"{', '.join(other)}, published evaluations have {_budgets(board)}")
    if covered["decided"] < covered["expected"] or not covered["all_suites"]:
        of = "" if covered["all_suites"] else f" of {', '.join(covered['suites'])} alone"
        reasons.append(f"{covered['decided']:,} of {covered['expected']:,} episodes{of}")
    return reasons


def _budgets(board: Leaderboard) -> str:
    return "/".join(str(steps) for steps in board.steps.values())
