"""Rates of a set of records by suite, category, level and task, with their totals and intervals.

A *cell* is a tally: counts, the rate over successes and failures, and Wilson's interval. Suites, categories and totals
also have ``clustered95``, the interval of the task-clustered bootstrap: Wilson's says how well the rate on these very
tasks is known, the clustered one how far it would carry to other tasks like them.
"""

from collections import Counter
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
from typing import Any
from typing import TypeVar

import numpy as np

from eval.results import FINAL
from eval.results import Record
from eval.statistics import Resampled
from eval.statistics import clustered_bootstrap
from eval.statistics import wilson

T = TypeVar("T")
CURVE_POINTS = 40


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
        "decided": decided,
        "success_rate": outcomes["success"] / decided if decided else None,
        "interval95": list(wilson(outcomes["success"], decided)),
    }


def clustered(records: Iterable[Record], column: Callable[[Record], Hashable] | None = None) -> Resampled:
    """Task-clustered intervals of the pooled rate and, over the values of ``column``, of the macro rate."""
    decided = [record for record in records if record["outcome"] in FINAL]
    # Sorted, so that the draws, and with them the interval, do not depend on the order of the records.
    tasks = sorted({(record["suite"], record["task"]) for record in decided})
    columns = sorted({column(record) for record in decided} if column else {None}, key=str)
    rows, positions = ({key: i for i, key in enumerate(keys)} for keys in (tasks, columns))
    totals = np.zeros((len(tasks), len(columns)))
    counts = np.zeros(totals.shape, int)
    for record in decided:
        cell = rows[record["suite"], record["task"]], positions[column(record) if column else None]
        totals[cell] += record["outcome"] == "success"
        counts[cell] += 1
    suites = sorted({suite for suite, _ in tasks})
    return clustered_bootstrap(totals, counts, np.array([suites.index(suite) for suite, _ in tasks], int))


def cell(records: Sequence[Record]) -> dict[str, Any]:
    """The tally with the clustered interval."""
    interval = clustered(records).pooled
    return tally(records) | {"clustered95": list(interval) if interval else None}


def split(items: Iterable[T], key: Callable[[T], Any]) -> dict[Any, list[T]]:
    """Records, or anything else, by the value of ``key`` in the order of appearance; those without one are left out."""
    parts: dict[Any, list[T]] = {}
    for item in items:
        if (value := key(item)) is not None:
            parts.setdefault(value, []).append(item)
    return parts


def in_turns(parts: Iterable[Sequence[T]]) -> list[T]:
    """The first item of every part, then the second of every part that has one, and so on."""
    parts = list(parts)
    return [part[turn] for turn in range(max(map(len, parts), default=0)) for part in parts if turn < len(part)]


def category_of(record: Mapping[str, Any]) -> str | None:
    """What LIBERO-Plus changed in the episode; None where nothing was."""
    return record.get("category")


def level_of(record: Mapping[str, Any]) -> int | None:
    """LIBERO-Plus's difficulty, 1 to 5; None where it gives none."""
    return record.get("level")


def suite_of(record: Mapping[str, Any]) -> str:
    """The suite."""
    return str(record["suite"])


def task_of(record: Mapping[str, Any]) -> tuple[str, int]:
    """The task with its suite."""
    return record["suite"], record["task"]


def breakdown(records: Sequence[Record]) -> dict[str, Any]:
    """All cells of ``records``.

    Returns:
        The total's cell with ``macro`` (the plain mean of the categories' rates, or of the suites' where there is one
        category or none, with its clustered interval; None for a single one), ``suites``, and ``categories`` with their
        ``levels``.
    """
    suites, categories = split(records, suite_of), split(records, category_of)
    return {
        **cell(records),
        "macro": macro(records),
        "suites": [{"suite": suite} | cell(part) for suite, part in suites.items()],
        "categories": [
            {"category": category}
            | cell(part)
            | {"levels": [{"level": n} | tally(level) for n, level in sorted(split(part, level_of).items())]}
            for category, part in categories.items()
        ],
    }


def macro(records: Sequence[Record]) -> dict[str, Any] | None:
    """The plain mean of the categories' or suites' rates; None unless at least two were decided."""
    for name, key in (("categories", category_of), ("suites", suite_of)):
        parts = split(records, key)
        rates = [tally(part)["success_rate"] for part in parts.values()]
        if len(rates) > 1 and None not in rates:
            members = [record for part in parts.values() for record in part]
            interval = clustered(members, key).macro
            return {"over": name, "rate": sum(rates) / len(rates), "clustered95": list(interval) if interval else None}
    return None


def steps_to_success(records: Iterable[Record]) -> list[dict[str, Any]]:
    """How many steps successes took, by suite, since each suite has a budget of its own.

    Returns:
        Per suite the largest ``budget``, the number of ``successes`` and of ``decided`` episodes, the five
        ``quantiles`` of the successes' steps (None without any), and the ``curve``: the share of the decided episodes
        that had succeeded within so many steps. Its last point is the success rate.
    """
    result = []
    for suite, part in split((r for r in records if r["outcome"] in FINAL), suite_of).items():
        budget = max(record["max_steps"] for record in part)
        steps = np.sort([record["steps"] for record in part if record["outcome"] == "success"])
        points = np.unique(np.linspace(0, budget, min(CURVE_POINTS, budget) + 1).round().astype(int))
        shares = np.searchsorted(steps, points, side="right") / len(part)
        result.append(
            {
                "suite": suite,
                "budget": budget,
                "successes": len(steps),
                "decided": len(part),
                "quantiles": np.quantile(steps, [0, 0.25, 0.5, 0.75, 1]).tolist() if len(steps) else None,
                "curve": [[int(x), float(y)] for x, y in zip(points, shares, strict=True)],
            }
        )
    return result


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
