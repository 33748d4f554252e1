"""What is kept out of training: one task of each suite, a part of the layouts of the others, a wording of each type.

Which side something is on follows from its name alone: more layouts or another number of workers never move a sample
from one side to the other.
"""

from pokevla_jax.data import hashing
from pokevla_jax.sim.corpus.phrasings import TYPES

HELD_OUT_TASKS = {
    # The bowl from the table's centre; ketchup into the basket; cream cheese into the bowl; two cans into the basket.
    "libero_spatial": (2,),
    "libero_object": (4,),
    "libero_goal": (6,),
    "libero_10": (0,),
}
"""Whose objects all occur in training tasks too."""
HELD_OUT_LAYOUTS = 0.08
"""Part of the other tasks' layouts."""
HELD_OUT_PHRASINGS = 0.06
"""Part of the questions about training scenes that are worded as no training question is."""


def is_held_out_task(suite: str, task: int) -> bool:
    """Whether no training sample shows this task's scene."""
    return task in HELD_OUT_TASKS.get(suite, ())


def is_held_out_layout(suite: str, task: int, seed: int, layout: int) -> bool:
    """Whether a layout of a training task is kept out."""
    return hashing.uniform(f"{suite}/{task}/{seed}/{layout}") < HELD_OUT_LAYOUTS


def is_held_out_phrasing(type_: str, phrasing: int) -> bool:
    """Whether no training question is worded so."""
    return phrasing >= len(TYPES[type_].train)


def held_out(suite: str, task: int, seed: int, layout: int, type_: str, phrasing: int) -> list[str]:
    """Which of "task", "layout" and "phrasing" a sample has that no training sample has."""
    return [
        name
        for name, out in (
            ("task", is_held_out_task(suite, task)),
            ("layout", is_held_out_layout(suite, task, seed, layout)),
            ("phrasing", is_held_out_phrasing(type_, phrasing)),
        )
        if out
    ]
