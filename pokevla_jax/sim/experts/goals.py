"""Which tasks have an expert, told from the goals in their task files alone (no simulator is loaded)."""

import functools

from pokevla_jax.sim import bddl
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.tasks import MAX_STEPS
from pokevla_jax.sim.tasks import TaskSpec
from pokevla_jax.sim.tasks import list_tasks

Goal = tuple[str, ...]
"""One predicate of a task file's goal, such as ``("on", "akita_black_bowl_1", "plate_1")``."""


KINDS = frozenset({"basket", "fill drawer", "drawer", "push", "knob", "pick and place"})
MEASURED = {
    "libero_spatial": KINDS,
    "libero_object": KINDS,
    "libero_goal": KINDS,
    "libero_10": frozenset({"basket"}),
}
"""Suite -> experts whose success was measured on its tasks."""


def check_solvable(task: TaskSpec) -> None:
    """Raises ``SimulationError`` unless ``task`` has an expert, naming those of its suite that have one."""
    if is_solvable(task):
        return
    others = [f"{other.index} ({other.name})" for other in solvable_tasks(task.suite)]
    known = f"tasks {', '.join(others)}" if others else "no task"
    raise SimulationError(f"No scripted expert can do {task.name!r}; of {task.suite} it can do {known}")


def solvable_tasks(suite: str) -> tuple[TaskSpec, ...]:
    """The tasks of a suite that have an expert."""
    return tuple(task for task in list_tasks(suite) if is_solvable(task)) if suite in MAX_STEPS else ()


@functools.cache
def is_solvable(task: TaskSpec) -> bool:
    """Whether there is an expert for every goal of the task, that was seen to succeed on it."""
    ((_, *goals),) = bddl.section(task.bddl_file, "goal")
    kinds = {expert_kind(tuple(goal)) for goal in goals}
    return "" not in kinds and kinds <= MEASURED.get(task.suite, frozenset())


def expert_kind(goal: Goal) -> str:
    """Which expert a goal needs; empty where there is none."""
    match goal:
        case ("in", _, region) if region.startswith("basket"):
            return "basket"
        case ("in", _, region) if region.startswith("wooden_cabinet"):
            return "fill drawer"
        case ("open", region) if region.startswith("wooden_cabinet"):
            return "drawer"
        case ("on", target, region) if target.startswith("plate") and "table" in region:
            return "push"
        case ("turnon", _):
            return "knob"
        case ("on", _, _):
            return "pick and place"
    return ""
