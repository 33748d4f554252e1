"""``python -m eval compare A B``: two policies on the same episodes, pair by pair."""

import argparse
import json
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from eval.breakdown import category_of
from eval.breakdown import split
from eval.breakdown import suite_of
from eval.breakdown import task_of
from eval.errors import EvaluationError
from eval.results import Record
from eval.results import RunFolder
from eval.results import by_base_id
from eval.results import decided
from eval.statistics import Pairs
from eval.statistics import clustered_bootstrap
from eval.statistics import mcnemar_exact
from eval.statistics import paired_difference
from eval.statistics import wilson

Pair = tuple[Record, Record]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the options of ``compare``."""
    parser.description = (
        "Compares two runs on the episodes that both have decided: the difference of their rates, its\n"
        "interval, and whether chance explains it."
    )
    help_text = "run folder, or several separated by commas: seeds, paired one to one and pooled"
    parser.add_argument("a", metavar="A", help=help_text)
    parser.add_argument("b", metavar="B", help=help_text)
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")


def check_comparable(a: RunFolder, b: RunFolder, remedy: str) -> None:
    """Raises ``EvaluationError`` when the two were simulated under different conditions, naming the first."""
    ours, theirs = a.protocol(), b.protocol()
    if ours.simulation_hash != theirs.simulation_hash:
        change = next(line for line in ours.differences(theirs) if line.startswith("simulation"))
        raise EvaluationError(f"{a.path} and {b.path} were simulated differently ({change}); {remedy}")


def pair(a: Mapping[str, Record], b: Mapping[str, Record]) -> list[Pair]:
    """Records of the same episodes, in the order of ``a``."""
    return [(record, b[key]) for key, record in a.items() if key in b]


def comparison(pairs: Sequence[Pair], *, clustered: bool = True) -> dict[str, Any]:
    """The paired table with its rates, the difference's intervals and McNemar's exact p-value.

    Args:
        pairs: records of two policies on the same episodes.
        clustered: also draw the interval over tasks, which takes some hundredths of a second.
    """
    table = Pairs.count((x["outcome"] == "success", y["outcome"] == "success") for x, y in pairs)
    successes = {"a": table.both + table.only_a, "b": table.both + table.only_b}
    return {
        "pairs": table.n,
        "both": table.both,
        "only_a": table.only_a,
        "only_b": table.only_b,
        "neither": table.neither,
        **{f"rate_{name}": successes[name] / table.n if table.n else None for name in "ab"},
        **{f"interval95_{name}": list(wilson(successes[name], table.n)) for name in "ab"},
        "difference": table.difference,
        "difference_interval95": list(paired_difference(table)),
        "difference_clustered95": _clustered_difference(pairs) if clustered else None,
        "mcnemar_p": mcnemar_exact(table.only_a, table.only_b),
    }


def _clustered_difference(pairs: Sequence[Pair]) -> list[float] | None:
    """The interval of the difference over tasks like these; None where it is not defined."""
    tasks = split_pairs(pairs, task_of)
    keys = sorted(tasks)
    suites = sorted({suite for suite, _ in keys})
    totals = [sum((x["outcome"] == "success") - (y["outcome"] == "success") for x, y in tasks[key]) for key in keys]
    counts = [len(tasks[key]) for key in keys]
    interval = clustered_bootstrap(
        np.array(totals, float)[:, None], np.array(counts, int)[:, None], np.array([suites.index(s) for s, _ in keys])
    ).pooled
    return list(interval) if interval else None


def split_pairs(pairs: Sequence[Pair], key: Callable[[Record], Any]) -> dict[Any, list[Pair]]:
    """Pairs by the value of ``key``, which is the same for both records of a pair; those without one are left out."""
    return split(pairs, lambda pair: key(pair[0]))


def compare(a: Sequence[Path], b: Sequence[Path]) -> dict[str, Any]:
    """The comparison of two lists of runs, paired one to one; a single B stands against every A.

    Raises:
        EvaluationError: when the lists do not match, nothing is common, or the simulations differ.
    """
    if len(b) == 1:
        b = list(b) * len(a)
    if len(a) != len(b):
        raise EvaluationError(f"compare pairs runs one to one: {len(a)} and {len(b)} were given; give equally many")
    pairs: list[Pair] = []
    alone = 0
    for path_a, path_b in zip(a, b, strict=True):
        left, right = RunFolder(path_a), RunFolder(path_b)
        check_comparable(left, right, "run one of them again")
        records_a, records_b = (decided(by_base_id(run.specs(), run.records())) for run in (left, right))
        common = pair(records_a, records_b)
        alone += len(records_a) + len(records_b) - 2 * len(common)
        pairs += common
    if not pairs:
        raise EvaluationError("The runs have no episode in common; evaluate both on the same tasks and layouts")
    names = {task_of(x): x["task_name"] for x, _ in pairs}
    return {
        "a": [str(path) for path in a],
        "b": [str(path) for path in b],
        "unpaired": alone,
        **comparison(pairs),
        "suites": [{"suite": suite} | comparison(part) for suite, part in split_pairs(pairs, suite_of).items()],
        "categories": [
            {"category": category} | comparison(part) for category, part in split_pairs(pairs, category_of).items()
        ],
        "tasks": [
            {"suite": suite, "task": task, "name": names[suite, task]} | comparison(part)
            for (suite, task), part in split_pairs(pairs, task_of).items()
        ],
    }


def lines(result: Mapping[str, Any]) -> list[str]:
    """The comparison for a terminal."""
    low, high = result["difference_interval95"]
    text = [
        f"{result['pairs']} episodes in both"
        + (f" ({result['unpaired']} in one only, left out)" if result["unpaired"] else ""),
        "",
        "               B succeeded  B failed",
        f"A succeeded  {result['both']:>12} {result['only_a']:>9}",
        f"A failed     {result['only_b']:>12} {result['neither']:>9}",
        "",
        f"A {result['rate_a']:.1%}, B {result['rate_b']:.1%}; A - B = {100 * result['difference']:+.1f} points "
        f"(95 % interval {100 * low:+.1f} to {100 * high:+.1f}, Newcombe's paired score interval), "
        f"McNemar's exact p = {result['mcnemar_p']:.3g}",
    ]
    if result["difference_clustered95"]:
        low, high = result["difference_clustered95"]
        text.append(f"over tasks like these {100 * low:+.1f} to {100 * high:+.1f} (task-clustered bootstrap)")
    for name, rows in (("suite", "suites"), ("category", "categories"), ("name", "tasks")):
        if len(result[rows]) > 1:
            width = max(len(row[name]) for row in result[rows])
            text += [""] + [f"  {row[name]:<{width}}  {_row(row)}" for row in result[rows]]
    return text


def _row(row: Mapping[str, Any]) -> str:
    low, high = row["difference_interval95"]
    return (
        f"A {row['rate_a']:>4.0%}  B {row['rate_b']:>4.0%}  {100 * row['difference']:+.0f} "
        f"({100 * low:+.0f} to {100 * high:+.0f}), {row['pairs']} pairs"
    )


def main(options: argparse.Namespace) -> int:
    """Prints the comparison."""
    result = compare([Path(p) for p in options.a.split(",")], [Path(p) for p in options.b.split(",")])
    print(json.dumps(result, indent=1) if options.json else "\n".join(lines(result)))
    return 0
