"""From options to episodes: today's command lines give the episodes of old, several suites, and contradictions."""

from pathlib import Path

import pytest

from eval.benchmarks import build_manifest
from eval.benchmarks.selection import PUBLISHED_SUITES
from eval.errors import EvaluationError
from eval.results import manifest_digest
from eval.run import Options
from pokevla_jax.sim.errors import SimulationError

pytestmark = pytest.mark.sim


def specs(**options):
    return build_manifest(Options(policy="random", run_dir=Path("nowhere"), **options))


@pytest.mark.parametrize(
    ("options", "ids"),
    [
        (
            {"tasks": "0,3", "init_states": "0,49"},
            ["4315cec0b59bf44c", "c76b974a136a40c1", "36d69dc415eccab9", "aeb1d61436574bcf"],
        ),
        (
            {"tasks": "0,9", "layouts": 2, "layout_seed": 90000},
            ["f6e12f52e0c77790", "c8d1fd34b16e3d3b", "d0ec7076919096c0", "fc981281037d35d2"],
        ),
        (
            {"tasks": "1", "layouts": 2, "layout_seed": 5, "layout_kind": "shared", "max_steps": 40, "seed": 7},
            ["f4752794d0a100f6", "674220d2ae318906"],
        ),
        ({"suite": "libero_goal", "tasks": "put_the_bowl_on_the_plate", "init_states": "40"}, ["4c1a1a5f6b521d80"]),
    ],
)
def test_ids_never_change(options, ids):
    """Stored results are found by these: they were written before there was ``--benchmark``."""
    assert [spec.id for spec in specs(**options)] == ids
    benchmark = "libero" if "init_states" in options else "libero_moved"
    assert [spec.id for spec in specs(benchmark=benchmark, **options)] == ids


def test_libero_is_every_stored_state_of_the_published_suites():
    episodes = specs(benchmark="libero", suite="all")
    assert len({spec.id for spec in episodes}) == 2000
    assert tuple(dict.fromkeys(spec.suite for spec in episodes)) == PUBLISHED_SUITES
    assert {spec.suite: spec.max_steps for spec in episodes} == dict(
        zip(PUBLISHED_SUITES, (220, 280, 300, 520), strict=True)
    )
    one = [spec for spec in episodes if spec.suite == "libero_object"]
    assert manifest_digest(one) == "f8aee5019716a098"


def test_several_suites_with_indices_and_with_names():
    episodes = specs(suite="libero_goal,libero_object", tasks="0,9", init_states="0")
    assert [(spec.suite, spec.task) for spec in episodes] == [
        *(("libero_goal", task) for task in (0, 9)),
        *(("libero_object", task) for task in (0, 9)),
    ]
    names = f"{episodes[3].task_name},{episodes[1].task_name}"
    named = specs(suite="libero_goal,libero_object", tasks=names, init_states="0")
    assert named == [episodes[3], episodes[1]]


def test_all_suites_of_moved_layouts_are_those_with_an_expert():
    assert specs(benchmark="libero_moved", suite="all", layouts=1) == specs(suite="libero_object", layouts=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"^Which episodes\? Give --benchmark"),
        ({"init_states": "0", "layouts": 1}, "^--init-states and --layouts start episodes in different places"),
        ({"benchmark": "libero", "layouts": 1}, "^--layouts goes with --benchmark libero_moved, not libero;"),
        ({"benchmark": "libero_moved", "init_states": "0"}, "^--init-states goes with --benchmark libero, not"),
        ({"benchmark": "libero_moved"}, "say how many per task with --layouts N"),
        ({"benchmark": "libreo", "init_states": "0"}, "^There is no benchmark 'libreo'"),
        ({"suite": "libero_object,libero_goal", "layouts": 1}, "^libero_goal has no moved layouts"),
        ({"suite": "libero_object,libero_object", "init_states": "0"}, "names a suite twice"),
        ({"suite": "libero_object,libero_gaol", "init_states": "0"}, "did you mean libero_goal"),
        ({"suite": "libero_object,libero_goal", "tasks": "0-10", "init_states": "0"}, "there is no index 10"),
        ({"suite": "libero_object,libero_goal", "tasks": "open_the_drawer", "init_states": "0"}, "the nearest is open"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(options, message):
    with pytest.raises((EvaluationError, SimulationError), match=message) as error:
        specs(**options)
    assert "\n" not in str(error.value)
