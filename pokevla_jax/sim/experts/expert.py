"""The expert of a task, chosen by its goals."""

from typing import Protocol

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.experts.basket import BasketExpert
from pokevla_jax.sim.experts.drawer import DrawerExpert
from pokevla_jax.sim.experts.drawer import FillDrawerExpert
from pokevla_jax.sim.experts.goals import Goal
from pokevla_jax.sim.experts.goals import check_solvable
from pokevla_jax.sim.experts.goals import expert_kind
from pokevla_jax.sim.experts.knob import KnobExpert
from pokevla_jax.sim.experts.pick_place import PickPlaceExpert
from pokevla_jax.sim.experts.push import PushExpert
from pokevla_jax.typing import Float


class GoalExpert(Protocol):
    """Brings about one goal."""

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state."""


class ScriptedExpert:
    """Solves the environment's task, from any state of the scene.

    A task with several goals is solved goal by goal, in the file's order.

    Args:
        environment: a scene whose task is one of ``goals.solvable_tasks``.

    Raises:
        SimulationError: for another task, naming those of its suite that have an expert.
    """

    def __init__(self, environment: LiberoEnvironment):
        check_solvable(environment.task)
        self._environment = environment
        self._experts: dict[Goal, GoalExpert] = {}

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state, in [-1, 1]: translation, rotation, gripper (-1 open, +1 close)."""
        # Read anew each time: the goal of a shared scene follows its task.
        goals = [tuple(goal) for goal in self._environment.sim_env.parsed_problem["goal_state"]]
        goal = goals[0] if len(goals) == 1 else self._first_unmet(goals)
        if goal not in self._experts:
            self._experts[goal] = _goal_expert(self._environment, goal)
        return self._experts[goal].act()

    def _first_unmet(self, goals: list[Goal]) -> Goal:
        unmet = [goal for goal in goals if not self._environment.sim_env._eval_predicate(list(goal))]
        return unmet[0] if unmet else goals[-1]


def _goal_expert(environment: LiberoEnvironment, goal: Goal) -> GoalExpert:
    match expert_kind(goal):
        case "basket":
            return BasketExpert(environment, goal[1], goal[2].removesuffix("_contain_region"))
        case "fill drawer":
            return FillDrawerExpert(environment, goal[1], goal[2])
        case "drawer":
            return DrawerExpert(environment, goal[1])
        case "push":
            return PushExpert(environment, goal[1], goal[2])
        case "knob":
            return KnobExpert(environment, goal[1])
        case "pick and place":
            return PickPlaceExpert(environment, goal[1], goal[2])
    raise SimulationError(f"No scripted expert brings about {goal}")
