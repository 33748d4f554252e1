"""Cells, totals and distributions of made-up records, against sums by hand and a second implementation."""

import itertools

import numpy as np
import pytest
from scipy import stats

from eval.breakdown import breakdown
from eval.breakdown import steps_to_success
from eval.breakdown import tally
from eval.statistics import wilson


def record(suite="libero_goal", task=0, outcome="success", *, steps=100, **more):
    return {"suite": suite, "task": task, "outcome": outcome, "steps": steps, "max_steps": 300} | more


def records(seed=0):
    """Episodes of two suites, four tasks, two categories and five levels, unevenly many of each."""
    rng = np.random.default_rng(seed)
    cells = itertools.product(("libero_goal", "libero_10"), range(4), ("camera", "noise"), (1, 2, 3, 4, 5, None))
    found = []
    for suite, task, category, level in cells:
        for _ in range(rng.integers(1, 6)):
            outcome = str(rng.choice(["success", "failure", "error"], p=[0.5, 0.4, 0.1]))
            found.append(record(suite, task, outcome, category=category, level=level))
    return found


def brute_force(found, **wanted):
    """Successes and decided episodes where all ``wanted`` fields agree."""
    members = [r for r in found if all(r[key] == value for key, value in wanted.items())]
    return [sum(r["outcome"] in words for r in members) for words in (("success",), ("success", "failure"))]


def test_every_cell_is_the_sum_of_its_episodes():
    found = records()
    result = breakdown(found)
    cells = [(result, {})]
    cells += [(row, {"suite": row["suite"]}) for row in result["suites"]]
    for row in result["categories"]:
        cells.append((row, {"category": row["category"]}))
        cells += [(cell, {"category": row["category"], "level": cell["level"]}) for cell in row["levels"]]
    assert len(cells) == 1 + 2 + 2 + 2 * 5
    for cell, wanted in cells:
        successes, decided = brute_force(found, **wanted)
        assert (cell["success"], cell["decided"]) == (successes, decided)
        assert cell["success_rate"] == successes / decided
        assert cell["interval95"] == list(wilson(successes, decided))
    assert result["error"] == sum(r["outcome"] == "error" for r in found) > 0
    # Episodes without a level are in their category, but in no level.
    levels = sum(cell["episodes"] for row in result["categories"] for cell in row["levels"])
    assert levels == sum(r["level"] is not None for r in found) < len(found)


def test_the_macro_rate_is_the_mean_over_categories_or_suites():
    found = records()
    result = breakdown(found)
    rates = [np.divide(*brute_force(found, category=name)) for name in ("camera", "noise")]
    assert result["macro"]["over"] == "categories"
    assert result["macro"]["rate"] == pytest.approx(np.mean(rates))
    assert result["macro"]["rate"] != pytest.approx(result["success_rate"], abs=1e-4)
    plain = [{key: value for key, value in r.items() if key not in ("category", "level")} for r in found]
    result = breakdown(plain)
    assert (result["macro"]["over"], result["categories"]) == ("suites", [])
    rates = [np.divide(*brute_force(plain, suite=name)) for name in ("libero_goal", "libero_10")]
    assert result["macro"]["rate"] == pytest.approx(np.mean(rates))
    assert breakdown([r for r in plain if r["suite"] == "libero_10"])["macro"] is None


def test_clustered_intervals_follow_the_tasks_and_not_the_order_of_records():
    """Tasks that always or never succeed: the interval is that of four tasks, not of 400 episodes."""
    found = [record(task=task, outcome="success" if task % 2 else "failure") for task in range(4) for _ in range(100)]
    cell = breakdown(found)["suites"][0]
    assert cell["clustered95"][0] <= 0.25
    assert cell["clustered95"][1] >= 0.75
    assert cell["interval95"][1] - cell["interval95"][0] < 0.11
    assert breakdown(found[::-1]) == breakdown(found)
    assert breakdown([record(), record(outcome="failure")])["clustered95"] is None


def test_nothing_decided_has_no_rate():
    result = breakdown([record(outcome="error")])
    assert (result["success_rate"], result["macro"], result["clustered95"]) == (None, None, None)
    assert breakdown([])["suites"] == []
    assert tally([])["interval95"] == [0, 1]


def test_steps_to_success_are_the_quantiles_and_the_distribution():
    rng = np.random.default_rng(0)
    steps = rng.integers(1, 301, 57).tolist()
    found = [record(steps=n) for n in steps] + [record(outcome="failure", steps=300)] * 43
    (part,) = steps_to_success([*found, record(outcome="error", steps=0)])
    assert part["quantiles"] == np.percentile(steps, [0, 25, 50, 75, 100]).tolist()
    assert (part["successes"], part["decided"], part["budget"]) == (57, 100, 300)
    reference = stats.ecdf(steps).cdf
    x, y = np.array(part["curve"]).T
    np.testing.assert_allclose(y, 0.57 * reference.evaluate(x))
    assert (x[0], x[-1], y[-1]) == (0, 300, 0.57)
    (none,) = steps_to_success([record(outcome="failure")])
    assert none["quantiles"] is None
    assert {y for _, y in none["curve"]} == {0}


def test_suites_have_distributions_of_their_own():
    found = [record(), record("libero_10", steps=400, max_steps=520)]
    assert [(part["suite"], part["budget"]) for part in steps_to_success(found)] == [
        ("libero_goal", 300),
        ("libero_10", 520),
    ]
