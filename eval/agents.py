"""Who acts in an episode: the scripted expert, uniform noise, a replayed demonstration, or a checkpoint's policy.

An agent is picklable before ``begin``: the driver sends it to every simulator. The checkpoint agent holds only a handle
to the one process that has the network.
"""

from collections.abc import Callable
from typing import Any
from typing import Protocol

import numpy as np

from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from pokevla_jax.typing import Float

Chunk = Float[np.ndarray, "t a"]
ACTION_DIM = 7


class Agent(Protocol):
    """One side of the loop of ``episode.run_episode``; the other is the simulator's environment."""

    needs_images: bool

    def begin(self, environment: Any, spec: EpisodeSpec) -> None:
        """Called after the environment stands at the episode's start."""

    def act(self, observation: dict[str, Any] | None) -> Chunk:
        """The next actions in LIBERO's convention; ``observation`` is None unless ``needs_images``."""


class ExpertAgent:
    """The scripted expert: it reads the simulator's state, decides at every step and needs no image."""

    needs_images = False

    def begin(self, environment: Any, spec: EpisodeSpec) -> None:
        """Binds the expert to the environment."""
        from pokevla_jax.sim.experts.expert import ScriptedExpert  # simulators import MuJoCo, the driver need not

        self._expert = ScriptedExpert(environment)

    def act(self, observation: dict[str, Any] | None) -> Chunk:
        """One action."""
        return np.asarray(self._expert.act(), np.float32)[None]


class RandomAgent:
    """Independent uniform actions in [-1, 1]; the gripper opens or closes with even odds at every step."""

    needs_images = False

    def __init__(self, horizon: int = 8):
        self._horizon = horizon

    def begin(self, environment: Any, spec: EpisodeSpec) -> None:
        """Seeds the noise with the episode's id, so that it depends on nothing else."""
        self._rng = np.random.default_rng(spec.random_seed())

    def act(self, observation: dict[str, Any] | None) -> Chunk:
        """A chunk of noise."""
        actions = self._rng.uniform(-1, 1, (self._horizon, ACTION_DIM))
        actions[:, -1] = np.sign(actions[:, -1])
        return actions.astype(np.float32)


class ReplayAgent:
    """A recorded success, action by action whatever happens: what memory alone is worth on a benchmark.

    After its last action the arm holds still with the gripper as it was.
    """

    needs_images = False

    def __init__(self, demonstrations: dict[tuple[str, int], Chunk]):
        self._demonstrations = demonstrations

    def begin(self, environment: Any, spec: EpisodeSpec) -> None:
        """Starts the demonstration of the episode's task from its first action."""
        self._actions = self._demonstrations[spec.suite, spec.task]
        self._done = False

    def act(self, observation: dict[str, Any] | None) -> Chunk:
        """The whole demonstration, then standing still."""
        if not self._done:
            self._done = True
            return self._actions
        hold = np.zeros((8, ACTION_DIM), np.float32)
        hold[:, -1] = self._actions[-1, -1]
        return hold


class CheckpointAgent:
    """A trained network, asked through ``infer`` (a call to the policy process, batched with other simulators')."""

    needs_images = True

    def __init__(self, infer: Callable[[dict[str, Any]], Chunk]):
        self._infer = infer

    def begin(self, environment: Any, spec: EpisodeSpec) -> None:
        """Nothing: the policy keeps no memory between chunks."""

    def act(self, observation: dict[str, Any] | None) -> Chunk:
        """The policy's chunk."""
        assert observation is not None
        return self._infer(observation)


def check_chunk(chunk: Any) -> Chunk:
    """``chunk`` as float32 ``[t, 7]``.

    Raises:
        EvaluationError: for another shape or a number that is not finite, which would otherwise end up in the physics.
    """
    array = np.asarray(chunk, np.float32)
    if array.ndim != 2 or array.shape[1] != ACTION_DIM or not len(array):
        raise EvaluationError(f"the policy returned actions of shape {array.shape}, expected (steps, {ACTION_DIM})")
    if not np.isfinite(array).all():
        raise EvaluationError("the policy returned actions that are not finite")
    return array
