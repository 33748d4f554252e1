"""Episode specifications: stable ids, strict option parsing."""

import dataclasses

import pytest

from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.manifest import LayoutSpec
from eval.manifest import check_unique
from eval.manifest import parse_indices
from eval.manifest import select_tasks
from tests.eval import runs


def test_an_id_depends_on_the_specification_and_on_nothing_else():
    (spec,) = runs.specs(1)
    assert spec.id == EpisodeSpec.from_dict(spec.to_dict()).id
    changed = [
        dataclasses.replace(spec, max_steps=281),
        dataclasses.replace(spec, prompt="pick up the milk"),
        dataclasses.replace(spec, seed=1),
        dataclasses.replace(spec, layout=LayoutSpec("moved", 90000, 1)),
        dataclasses.replace(spec, layout=LayoutSpec("shared", 90000, 0)),
        dataclasses.replace(spec, layout=None, init_state=0),
    ]
    assert len({spec.id, *(c.id for c in changed)}) == 7
    assert len({spec.random_seed(), *(c.random_seed() for c in changed)}) == 7


def test_a_control_is_another_episode_and_a_pair():
    (spec,) = runs.specs(1)
    mute = dataclasses.replace(spec, control="ablate-language", told="")
    assert EpisodeSpec.from_dict(mute.to_dict()) == mute
    assert (mute.instruction, spec.instruction) == ("", spec.prompt)
    assert mute.id != spec.id
    assert mute.base_id == spec.base_id == spec.id
    assert mute.random_seed() == spec.random_seed()


def test_ids_never_change_between_versions():
    """Stored results are found by id: these two are frozen."""
    assert runs.specs(1)[0].id == "e2a6d5113d52d428"
    stored = dataclasses.replace(runs.specs(1)[0], benchmark="libero", layout=None, init_state=7)
    assert stored.id == "ff1b0bc033dc655c"


def test_shared_scenes_are_shared_over_tasks_and_others_are_not():
    first, second = (s for s in runs.specs(1, tasks=2))
    assert first.scene != second.scene
    shared = [dataclasses.replace(s, layout=LayoutSpec("shared", 1, 0)) for s in (first, second)]
    assert shared[0].scene == shared[1].scene


@pytest.mark.parametrize(
    ("text", "expected"), [("40-42", (40, 41, 42)), ("3,1", (3, 1)), (" 0 , 2-3", (0, 2, 3)), ("5-5", (5,))]
)
def test_indices(text, expected):
    assert parse_indices(text, "--init-states") == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("40..49", "'40..49' is not an index"),
        ("", "'' is not an index"),
        ("1,,2", "'' is not an index"),
        ("-3", "'-3' is not an index"),
        ("9-3", "write 3-9"),
        ("1,0-2", "names an index twice"),
        ("48-50", "there is no index 50; the last one is 49"),
    ],
)
def test_malformed_indices_are_one_sentence(text, message):
    with pytest.raises(EvaluationError, match="--init-states") as error:
        parse_indices(text, "--init-states", limit=50)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_tasks_by_index_by_name_and_all():
    names = list(runs.NAMES)
    assert select_tasks("all", names, "libero_object") == (0, 1)
    assert select_tasks("1,0", names, "libero_object") == (1, 0)
    assert select_tasks("pick_up_the_milk", names, "libero_object") == (1,)
    with pytest.raises(EvaluationError, match="the nearest is pick_up_the_milk"):
        select_tasks("pick_up_the_mlik", names, "libero_object")
    with pytest.raises(EvaluationError, match="there is no index 2"):
        select_tasks("0-2", names, "libero_object")


def test_empty_and_repeated_lists_are_refused():
    with pytest.raises(EvaluationError, match="No episode"):
        check_unique([])
    with pytest.raises(EvaluationError, match="twice"):
        check_unique(runs.specs(1) * 2)
