"""A policy that meets other pictures than it was trained on is told apart from one that merely fails."""

import pytest

from eval.protocol import Protocol

REAL = {"assets": "real", "assets_sha256": "a", "renderer": "fast-v1-x"}
STANDINS = {"assets": "standins", "assets_sha256": "b", "renderer": "fast-v1-x"}
MULTISAMPLED = REAL | {"renderer": "robosuite"}


@pytest.mark.parametrize("trained", [[], [REAL], [STANDINS, REAL]])
def test_nothing_is_said_where_the_pictures_agree_or_are_unknown(trained):
    assert Protocol(REAL | {"image_size": 128}, {"pictures": trained}).unlike_training() == ""
    assert Protocol(REAL, {"kind": "expert"}).unlike_training() == ""


@pytest.mark.parametrize("here", [STANDINS, MULTISAMPLED])
def test_other_assets_or_another_renderer_are_one_sentence(here):
    note = Protocol(here, {"pictures": [REAL]}).unlike_training()
    assert note.startswith("The policy was trained on pictures of real assets through fast-v1-x and sees ")
    assert f"{here['assets']} assets through {here['renderer']} here" in note


def test_an_entry_that_only_one_has_is_named_though_it_is_empty():
    with_it, without = Protocol(REAL | {"limits": {}}, {"kind": "expert"}), Protocol(REAL, {"kind": "expert"})
    assert with_it.hash != without.hash
    assert with_it.difference(without) == "simulation limits: {}, not None"
