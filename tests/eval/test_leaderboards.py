"""Published rows, their aggregation, and what keeps our own row from being compared with them."""

import json
import os
import tarfile

import pytest

from eval.leaderboards import Result
from eval.leaderboards import coverage
from eval.leaderboards import leaderboards
from eval.leaderboards import macro
from eval.leaderboards import pooled
from eval.leaderboards import published_table

LIBERO, PLUS = leaderboards()["libero"], leaderboards()["libero_plus"]
PUBLISHED = {"assets": "real", "renderer": "robosuite", "published": True, "prompt": "clean", "hash": "00"}
POLICY = {"kind": "checkpoint", "label": "policy"}


def row(board, model):
    return next(row for row in board.rows if row.model == model)


@pytest.mark.parametrize(("model", "total"), [("OpenVLA-OFT", 69.6), ("OpenVLA-OFT+", 79.6), ("PokeVLA", 79.3)])
def test_category_rates_pool_to_the_published_total(model, total):
    rates = row(PLUS, model).rates
    assert row(PLUS, model).total == total
    assert round(pooled(rates, PLUS.counts()), 1) == total
    # The plain mean of the categories is another number, so a wrong rule cannot pass.
    assert abs(macro(rates) - total) > 0.5


def test_other_rows_pool_to_their_totals_or_say_that_they_do_not():
    odd = {r.model for r in PLUS.rows if abs(pooled(r.rates, PLUS.counts()) - r.total) > 0.1}
    assert odd == {r.model for r in PLUS.rows if r.remark} == {"UniVLA"}
    assert "pool to 42.9" in row(PLUS, "UniVLA").remark
    assert pooled(row(PLUS, "UniVLA").rates, PLUS.counts()) == pytest.approx(42.9, abs=0.05)


def test_libero_rows_average_to_their_totals():
    for r in LIBERO.rows:
        assert pooled(r.rates, LIBERO.counts()) == pytest.approx(r.total, abs=0.06), r.model
        assert macro(r.rates) == pytest.approx(pooled(r.rates, LIBERO.counts()))


def test_the_official_counts_are_the_benchmarks():
    assert sum(LIBERO.counts().values()) == 2000
    assert PLUS.counts() == {
        **{"camera": 1599, "robot": 1550, "language": 1537, "light": 1142},
        **{"background": 1076, "noise": 1601, "layout": 1525},
    }
    assert [sum(counts.values()) for counts in PLUS.episodes.values()] == [2402, 2518, 2591, 2519]
    for board in (LIBERO, PLUS):
        for r in board.rows:
            assert r.source
            assert r.protocol
            assert set(r.rates) <= set(board.columns)


def test_the_official_counts_are_those_of_the_classification_file():
    archive = os.environ.get("LIBERO_PLUS")
    if not archive or not tarfile.is_tarfile(archive):
        pytest.skip("needs LIBERO_PLUS: a tar of LIBERO-Plus's metadata")
    with tarfile.open(archive) as tar:
        name = next(name for name in tar.getnames() if name.endswith("task_classification.json"))
        tasks = json.load(tar.extractfile(name))
    for suite, entries in tasks.items():
        # Columns are named by the first word of the official categories, but for two.
        names = [entry["category"].split()[0].lower() for entry in entries]
        short = {"sensor": "noise", "objects": "layout"}
        found = {key: sum(short.get(name, name) == key for name in names) for key in PLUS.columns}
        assert found == PLUS.episodes[suite]


def episodes(counts, rate=0.5):
    """LIBERO-Plus records of one suite: as many of each category, the first share of them successes."""
    return [
        {
            **{"suite": "libero_goal", "task": 0, "category": category, "perturbation": f"{category}_{number}"},
            "outcome": "success" if number < rate * count else "failure",
            "max_steps": 300,
        }
        for category, count in counts.items()
        for number in range(count)
    ]


def test_coverage_counts_what_was_decided_of_the_suites_that_were_run():
    counts = dict.fromkeys(("camera", "noise"), 3)
    found = [*episodes(counts), *episodes(counts)]  # two seeds of the same episodes
    found[0] = found[0] | {"outcome": "error"}
    covered = coverage("libero_plus", [*found, episodes({"robot": 1})[0] | {"outcome": "error"}])
    assert (covered["decided"], covered["expected"], covered["suites"]) == (6, 2591, ["libero_goal"])
    by_column = {column["key"]: (column["decided"], column["expected"]) for column in covered["columns"]}
    assert by_column["camera"] == (3, 408)
    assert by_column["robot"] == (0, 409)


def test_our_total_weighs_categories_as_the_benchmark_does():
    """Few episodes of each category, as a sample has them: the total is the official counts' mean."""
    rates = dict(zip(PLUS.columns, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7), strict=True))
    found = [r for key, rate in rates.items() for r in episodes({key: 10}, rate)]
    (ours,) = published_table("libero_plus", [Result("policy", found, POLICY)], PUBLISHED)["ours"]
    counts = PLUS.episodes["libero_goal"]
    assert ours["total"] == pytest.approx(sum(counts[key] * rates[key] for key in rates) / 2591)
    assert ours["macro"] == pytest.approx(0.4)
    assert [cell["success_rate"] for cell in ours["cells"].values()] == list(rates.values())
    # Without one of the categories there is no total.
    (partial,) = published_table("libero_plus", [Result("policy", found[10:], POLICY)], PUBLISHED)["ours"]
    assert (partial["total"], partial["macro"]) == (None, None)
    assert partial["cells"]["camera"]["success_rate"] is None


def libero_records(states=50):
    return [
        {"suite": suite, "task": task, "init_state": state, "outcome": "success", "max_steps": LIBERO.steps[suite]}
        for suite in LIBERO.columns
        for task in range(10)
        for state in range(states)
    ]


def unlike(name, records, *, policy=POLICY, **changes):
    (ours,) = published_table(name, [Result("policy", records, policy)], PUBLISHED | changes)["ours"]
    return ours["unlike"]


def test_only_a_complete_run_under_published_conditions_is_comparable():
    assert unlike("libero", libero_records()) == []
    assert unlike("libero", libero_records(), assets="standins") == ["assets are standins: pixels are not LIBERO's"]
    assert "rendered by fast-v1" in unlike("libero", libero_records(), renderer="fast-v1", published=False)[0]
    assert "image size" in unlike("libero", libero_records(), published=False)[0]
    longer = [r | {"max_steps": 280} for r in libero_records()]
    assert unlike("libero", longer) == [
        "280 steps in libero_spatial, 280 steps in libero_goal, 280 steps in libero_10, "
        "published evaluations have 220/280/300/520"
    ]
    assert unlike("libero", libero_records(5)) == ["200 of 2,000 episodes"]
    one = [r for r in libero_records() if r["suite"] == "libero_10"]
    assert unlike("libero", one) == ["500 of 500 episodes of libero_10 alone"]
    assert unlike("libero", libero_records(), policy={"kind": "expert", "label": "expert"}) == [
        "expert is no trained policy"
    ]


def test_choices_of_libero_plus_that_others_did_not_make_are_named():
    found = [
        r | {"suite": suite, "max_steps": PLUS.steps[suite]}
        for suite, counts in PLUS.episodes.items()
        for r in episodes(counts)
    ]
    official = {"prompt": "official", "libero_plus": {"robot": "official"}}
    assert unlike("libero_plus", found, **official) == []
    assert "clean prompts" in unlike("libero_plus", found, libero_plus={"robot": "official"}, published=False)[0]
    strict = unlike("libero_plus", found, **(official | {"libero_plus": {"robot": "strict"}}), published=False)
    assert len(strict) == 1
    assert "strict robot poses" in strict[0]


def test_rows_of_different_training_stand_apart():
    blocks = published_table("libero_plus", [], PUBLISHED)["blocks"]
    models = [[row["model"] for row in block["rows"]] for block in blocks]
    assert models[1] == ["OpenVLA-OFT+"]
    assert models[0][:2] == ["PokeVLA", "OpenVLA-OFT"]
    totals = [row["total"] for row in blocks[0]["rows"]]
    assert totals == sorted(totals, reverse=True)
