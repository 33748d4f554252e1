"""``--benchmark libero_moved``: layouts that are sampled, so that a memorised motion does not solve them.

They exist for all ten tasks of libero_object, and the scripted expert solves them: a layout that no one can solve
measures nothing. ``moved`` moves everything in a task's own scene; ``shared`` stands several of the ten objects
together, so that only the instruction tells which is meant.
"""

from typing import TYPE_CHECKING

from eval.benchmarks.selection import common_fields
from eval.benchmarks.selection import selected_tasks
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.manifest import LayoutSpec

if TYPE_CHECKING:
    from eval.run import Options


def specs(options: "Options") -> list[EpisodeSpec]:
    """``--layouts`` episodes per task, numbered from 0 within ``--layout-seed``."""
    from pokevla_jax.sim.scenes import layout_suites  # it imports MuJoCo

    if options.layouts is None:
        raise EvaluationError("--benchmark libero_moved samples its layouts; say how many per task with --layouts N")
    suites = layout_suites(options.layout_kind)
    tasks = selected_tasks(options, suites)
    if lacking := dict.fromkeys(task.suite for task in tasks if task.suite not in suites):
        raise EvaluationError(
            f"{', '.join(lacking)} has no {options.layout_kind} layouts, {', '.join(suites)} has; use --benchmark "
            "libero there"
        )
    episodes = []
    for task in tasks:
        common = common_fields(options, task)
        layouts = (LayoutSpec(options.layout_kind, options.layout_seed, number) for number in range(options.layouts))
        episodes += [EpisodeSpec(benchmark="libero_moved", layout=layout, **common) for layout in layouts]
    return episodes
