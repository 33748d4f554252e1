"""Tasks, motions and changes in made-up scenes: what follows from the state is told, what is unclear is not asked."""

import numpy as np
import pytest

from pokevla_jax.sim.corpus import reasoning
from pokevla_jax.sim.corpus.facts import Goal
from pokevla_jax.sim.corpus.facts import Outcome
from tests.sim.corpus.made_up import all_drafts
from tests.sim.corpus.made_up import frame
from tests.sim.corpus.made_up import thing
from tests.sim.corpus.made_up import turn


def basket_scene(milk=(0.5, 0.2, 0.05), gripper=(0.45, 0.0, 0.3), **overrides):
    things = [thing("milk_1", 1, milk), thing("basket_1", 2, (0.5, -0.2, 0.05), (0.08, 0.08, 0.05), receives="in")]
    region = np.array([[0.45, -0.25, 0.0], [0.55, -0.15, 0.1]])
    holds = overrides.pop("holds", False)
    goal = Goal("put the milk in the basket", "put", ("milk_1",), holds, "basket_1", region)
    return frame(things, gripper=np.array(gripper), goals=(goal,), task_text=goal.text, **overrides)


def answers(scene, type_, before=None):
    return [d.answer for d in all_drafts(scene, before) if d.type == type_]


def test_the_next_step_of_a_task():
    assert answers(basket_scene(), "goal_reached") == ["no"]
    assert answers(basket_scene(), "next_subtask") == ["pick up the milk"]
    assert answers(basket_scene(held="milk_1"), "next_subtask") == ["put the milk in the basket"]
    assert answers(basket_scene(holds=True), "next_subtask") == ["nothing, the task is done"]
    assert answers(basket_scene(holds=True), "goal_reached") == ["yes"]


def test_a_closed_drawer_is_opened_first_and_closed_last():
    drawer = thing("butter_1", 1, (0.5, 0.2, 0.1), (0.1, 0.1, 0.1), noun="top drawer", kind="part")
    drawer = type(drawer)(**{**vars(drawer), "name": "cabinet/top"})
    soup = thing("alphabet_soup_1", 2, (0.5, -0.1, 0.05))
    close = Goal("close the top drawer", "close", ("cabinet/top",), True)
    put = Goal("put the alphabet soup in the top drawer", "put", ("alphabet_soup_1",), False, "cabinet/top")

    def step(state, put_holds, close_holds):
        goals = (
            Goal(**{**vars(close), "holds": close_holds}),
            Goal(**{**vars(put), "holds": put_holds}),
        )
        things = [type(drawer)(**{**vars(drawer), "state": state}), soup]
        return reasoning.next_subtask(frame(things, goals=goals, task_text="x"))

    assert step("closed", False, True) == "open the top drawer"
    assert step("open", False, False) == "pick up the alphabet soup"
    assert step("open", True, False) == "close the top drawer"
    assert step("closed", True, True) == "nothing, the task is done"


def test_the_next_motion_and_its_reason():
    def motion(**overrides):
        return answers(basket_scene(**overrides), "next_motion")

    top = 0.1
    assert motion() == ["move over the milk, because the gripper is not above it"]
    assert motion(gripper=(0.5, 0.2, 0.3)) == ["go down to the milk, because the gripper is above it"]
    assert motion(gripper=(0.505, 0.2, top - 0.029)) == ["close the gripper, because the milk is between the fingers"]
    assert motion(gripper=(0.5, 0.2, top - 0.029), held="milk_1", opening=0.4) == [
        "lift the milk, because it is between the fingers"
    ]
    assert motion(milk=(0.5, 0.1, 0.25), held="milk_1") == ["move over the basket, because the milk is lifted"]
    assert motion(milk=(0.5, -0.2, 0.25), held="milk_1") == ["open the gripper, because the milk is above the basket"]
    # On the way down, and on the way over: neither is clear.
    assert motion(gripper=(0.5, 0.2, top)) == []
    assert motion(milk=(0.5, -0.13, 0.25), held="milk_1") == []


@pytest.mark.parametrize("degrees", range(0, 360, 15))
def test_directions_are_the_nearest_of_four(degrees):
    offset = 0.2 * np.array([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))])
    expected = {0: "forward", 90: "left", 180: "back", 270: "right"}
    near = min(expected, key=lambda axis: turn(degrees, axis))
    answer = reasoning.direction(offset)
    assert answer == (expected[near] if turn(degrees, near) < 26 else None)
    assert reasoning.direction(0.05 * offset) == "it is above it"


def test_the_reason_of_a_failed_grasp_is_where_the_gripper_is():
    def reason(offset, success):
        outcome = Outcome("grasp", "milk_1", success)
        scene = basket_scene(gripper=(0.5 + offset[0], 0.2 + offset[1], 0.2), outcomes=(outcome,))
        return answers(scene, "will_succeed")

    assert reason((0.0, 0.005), True) == ["yes, because the gripper is above the milk"]
    assert reason((0.0, 0.08), False) == ["no, because the gripper is too far to the left"]
    assert reason((-0.08, 0.01), False) == ["no, because the gripper is too far back"]
    # What the simulator did has no obvious reason: not asked.
    assert reason((0.0, 0.005), False) == []
    assert reason((0.0, 0.08), True) == []


def test_what_changed():
    before = basket_scene()
    assert answers(basket_scene(), "what_changed", before) == ["nothing was moved"]
    assert answers(basket_scene(milk=(0.5, 0.05, 0.05)), "what_changed", before) == ["the milk was moved to the right"]
    assert answers(basket_scene(milk=(0.7, 0.2, 0.05)), "what_changed", before) == [
        "the milk was moved away from the robot"
    ]
    # A little, diagonally, or while something is held: not asked.
    assert answers(basket_scene(milk=(0.5, 0.17, 0.05)), "what_changed", before) == []
    assert answers(basket_scene(milk=(0.6, 0.1, 0.05)), "what_changed", before) == []
    assert answers(basket_scene(milk=(0.5, 0.05, 0.05), held="milk_1"), "what_changed", before) == []
    # Two things at once.
    both = frame([thing("milk_1", 1, (0.5, 0.0, 0.05)), thing("basket_1", 2, (0.7, -0.2, 0.05), (0.08, 0.08, 0.05))])
    assert answers(both, "what_changed", before) == []
