"""Frames of one layout: a chain of scenes that differ by one change each, or an expert's episode with its branches.

A *chain* starts from a stored state whose objects are moved to free places, and goes on by single changes (an object is
moved, or put in or on another one; a drawer, a door or a knob is set; the task's goal is brought about), while the arm
wanders and the objects come to rest. An *episode* is the scripted expert's from such a start, disturbed, seen every few
steps; before it goes down on something that belongs into a basket, and while it carries it, the simulator is branched:
what would this motion lead to?

Everything follows from (suite, task, seed, layout) alone.
"""

import zlib
from collections.abc import Iterator

import numpy as np

from pokevla_jax.sim.corpus.chains import Chain
from pokevla_jax.sim.corpus.chains import Look
from pokevla_jax.sim.corpus.chains import workspace
from pokevla_jax.sim.corpus.episodes import Episode
from pokevla_jax.sim.corpus.observe import Observer
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.experts.goals import is_solvable


def looks(environment: LiberoEnvironment, seed: int, layout: int, count: int) -> Iterator[Look]:
    """Up to ``count`` frames of a layout of the environment's task; every second one is an episode, given an expert.

    Raises:
        SimulationError: when no scene came to rest.
    """
    task = environment.task
    rng = np.random.default_rng([seed, zlib.crc32(task.suite.encode()), task.index, layout])
    observer = Observer(environment, workspace(environment))
    name = f"{task.suite}/{task.index}/{seed}/{layout}"
    kind = Episode if layout % 2 and is_solvable(task) else Chain
    yield from kind(environment, observer, rng, name, layout).looks(count)
