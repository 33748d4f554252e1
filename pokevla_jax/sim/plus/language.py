"""The instruction that a policy is given on LIBERO-Plus: the benchmark's own, or without its defect.

The benchmark derives the instruction from the file name, so outside the category Language policies are told, say,
"pick up the milk and place it in the basket view 0 0 100 0 0 initstate 11". ``official`` repeats that, ``clean`` gives
LIBERO's instruction. In the category Language both give the rewritten one.
"""

from typing import Literal

from pokevla_jax.sim import bddl
from pokevla_jax.sim.plus.metadata import Metadata
from pokevla_jax.sim.plus.metadata import PlusTask
from pokevla_jax.sim.tasks import language_of

PromptMode = Literal["clean", "official"]


def prompt(metadata: Metadata, task: PlusTask, mode: PromptMode) -> str:
    """The instruction of ``task``."""
    if task.perturbation.language:
        return " ".join(bddl.section(metadata.bddl_file(task), "language"))
    return task.base_task.language if mode == "clean" else language_of(task.name)
