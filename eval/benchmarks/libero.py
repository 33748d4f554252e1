"""``--benchmark libero``: LIBERO's stored initial states, 50 per task, as published tables count them."""

from typing import TYPE_CHECKING

from eval.benchmarks.selection import common_fields
from eval.benchmarks.selection import selected_tasks
from eval.manifest import EpisodeSpec
from eval.manifest import parse_indices
from pokevla_jax.sim.tasks import load_init_states

if TYPE_CHECKING:
    from eval.run import Options


def specs(options: "Options") -> list[EpisodeSpec]:
    """One episode per task and stored state: those of ``--init-states``, or the protocol's, or all of them."""
    episodes = []
    for task in selected_tasks(options):
        count = len(load_init_states(task))
        default = f"0-{min(count, options.preset.trials or count) - 1}"
        states = parse_indices(options.init_states or default, "--init-states", limit=count)
        common = common_fields(options, task)
        episodes += [EpisodeSpec(benchmark="libero", init_state=state, **common) for state in states]
    return episodes
