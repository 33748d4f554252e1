"""Which tasks ``--suite`` and ``--tasks`` mean, and what the episodes of a task have in common."""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from typing import Any

from eval.errors import EvaluationError
from eval.manifest import is_indices
from eval.manifest import select_tasks
from pokevla_jax.sim import tasks as libero

if TYPE_CHECKING:
    from eval.run import Options

# The four suites of published tables, which ``--suite all`` stands for: 40 tasks, 2,000 stored initial states.
PUBLISHED_SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")


def selected_tasks(options: "Options", suites: Sequence[str] = PUBLISHED_SUITES) -> list[libero.TaskSpec]:
    """The tasks that the options name, suite by suite; ``suites`` is what ``--suite all`` stands for.

    Indices hold for each suite; a full name is looked for in all of them.

    Raises:
        EvaluationError, SimulationError: for a suite or a task that does not exist, naming the nearest.
    """
    names = parse_suites(options.suite, suites)
    listed = [libero.list_tasks(name) for name in names]
    if options.tasks != "all" and not is_indices(options.tasks):
        listed, names = [tuple(task for tasks in listed for task in tasks)], (options.suite,)
    return [
        tasks[index]
        for name, tasks in zip(names, listed, strict=True)
        for index in select_tasks(options.tasks, [task.name for task in tasks], name)
    ]


def parse_suites(text: str, suites: Sequence[str] = PUBLISHED_SUITES) -> tuple[str, ...]:
    """The suites of ``--suite``: ``all``, or names separated by commas."""
    if text == "all":
        return tuple(suites)
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        libero.list_tasks(name)
    if len(set(names)) < len(names):
        raise EvaluationError(f"--suite {text!r} names a suite twice; each episode is run once")
    return names


def common_fields(options: "Options", task: libero.TaskSpec) -> dict[str, Any]:
    """The fields of ``EpisodeSpec`` that all episodes of a task share."""
    return {
        "suite": task.suite,
        "task": task.index,
        "task_name": task.name,
        "prompt": task.language,
        "max_steps": options.preset.max_steps[task.suite],
        "seed": options.preset.seed,
    }
