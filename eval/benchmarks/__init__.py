"""What can be evaluated: one module per benchmark, each with ``specs(options)``, its episodes in order.

``libero`` starts from the stored initial states, ``libero_moved`` from sampled layouts, ``libero_plus`` from perturbed
scenes.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from eval.benchmarks import libero
from eval.benchmarks import libero_moved
from eval.benchmarks import libero_plus
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.manifest import check_unique

if TYPE_CHECKING:
    from eval.run import Options

BENCHMARKS: dict[str, Callable[["Options"], list[EpisodeSpec]]] = {
    "libero": libero.specs,
    "libero_moved": libero_moved.specs,
    "libero_plus": libero_plus.specs,
}
# Options that one benchmark alone has; given without --benchmark, they say which is meant.
OWNERS = {
    "init_states": "libero",
    "layouts": "libero_moved",
    "category": "libero_plus",
    "sample": "libero_plus",
    "plus": "libero_plus",
    "plus_assets": "libero_plus",
}


def build_manifest(options: "Options") -> list[EpisodeSpec]:
    """The episodes that the options ask for, suite by suite and task by task.

    Raises:
        EvaluationError, SimulationError: for suites, tasks, states or counts that do not exist, and for options that
            contradict each other.
    """
    specs = BENCHMARKS[chosen_benchmark(options)](options)
    check_unique(specs)
    return specs


def chosen_benchmark(options: "Options") -> str:
    """The benchmark of ``--benchmark``, or else the one whose own options are given."""
    given = {name: owner for name, owner in OWNERS.items() if getattr(options, name) is not None}
    name = options.benchmark
    if name is None:
        if len(set(given.values())) > 1:
            both = " and ".join(map(_option, given))
            raise EvaluationError(f"{both} start episodes in different places; leave one of them out")
        if not given:
            raise EvaluationError(
                f"Which episodes? Give --benchmark {' or '.join(BENCHMARKS)}, --init-states or --layouts"
            )
        return next(iter(given.values()))
    if name not in BENCHMARKS:
        raise EvaluationError(f"There is no benchmark {name!r}; --benchmark takes {' or '.join(BENCHMARKS)}")
    for option, owner in given.items():
        if owner != name:
            raise EvaluationError(f"{_option(option)} goes with --benchmark {owner}, not {name}; leave one of them out")
    return name


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
