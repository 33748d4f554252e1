"""One noisy demonstration: what the expert would do in every state, and what was done instead.

An expert that is never disturbed shows one thin path, and a network trained on it does not know the way back. So the
episode starts with some random steps, random bursts interrupt it, and every other step carries noise, while the label
of each state stays what the noiseless expert would do there.
"""

import json
import os
import zipfile
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.experts.expert import ScriptedExpert
from pokevla_jax.sim.layouts import Layout
from pokevla_jax.sim.layouts import apply_layout
from pokevla_jax.sim.scenes import KINDS
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float
from pokevla_jax.typing import Int


@dataclass(frozen=True, kw_only=True)
class Noise:
    """How an episode is disturbed; all zeros is the expert's own path.

    Attributes:
        action: standard deviation of the noise on each translation of a clean step; rotations get a fifth of it.
        start_steps: an episode starts with up to this many random steps, gripper open.
        burst: chance that a random burst starts at a clean step.
        burst_steps: shortest and longest burst.
        burst_gripper: part of the bursts that also set the gripper at random, so that things are dropped.
    """

    action: float = 0.15
    start_steps: int = 21
    burst: float = 0.03
    burst_steps: tuple[int, int] = (2, 7)
    burst_gripper: float = 0.2


# Noise turns the hand less than it moves it: a tilted hand is rare in demonstrations and slow to put right.
_ROTATION_SHARE = 0.2
# Largest translation of a burst: seven steps of it move the hand by 6 cm along each axis, twenty-one by 19 cm.
_BURST_SPEED = 0.6


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """One episode without pictures: everything that rendering it later needs.

    Attributes:
        sim_state: simulator states, one per step, before acting.
        proprio: robot states that go with them.
        label: the noiseless expert's actions.
        executed: the actions taken.
        random: steps of a burst, whose executed action has nothing to do with the label.
    """

    layout: Layout
    success: bool
    sim_state: Float[np.ndarray, "t d"]
    proprio: Float[np.ndarray, "t r"]
    label: Float[np.ndarray, "t a"]
    executed: Float[np.ndarray, "t a"]
    random: Bool[np.ndarray, " t"]

    def chunk_end(self) -> Int[np.ndarray, " t"]:
        """For each step, the end (exclusive) of the labels that follow from what is seen there.

        The label at a burst's first step still answers the state that clean steps led to; those after it do not.
        """
        length = len(self.random)
        ends = np.where(self.random, np.arange(length) + 1, length)
        return np.minimum.accumulate(ends[::-1])[::-1].astype(np.int32)


def demonstrate(environment: LiberoEnvironment, layout: Layout, noise: Noise) -> Trajectory:
    """Plays one disturbed episode from ``layout``: a pure function of layout and noise settings.

    It ends when the goal holds or the task's step budget, stretched by the random steps, is spent.
    """
    apply_layout(environment, layout)
    expert = ScriptedExpert(environment)
    # One more number than the layout's own generator has, so that the two are independent.
    rng = np.random.default_rng([KINDS.index(layout.kind), layout.task, layout.seed, layout.index, 1])
    remaining = int(rng.integers(noise.start_steps + 1))
    burst = _burst(rng, noise, gripper=-1.0)
    steps: dict[str, list[Any]] = {"sim_state": [], "proprio": [], "label": [], "executed": [], "random": []}
    budget, success = environment.task.max_steps + noise.start_steps, False
    while len(steps["label"]) < budget and not success:
        label = expert.act()
        if remaining == 0 and rng.random() < noise.burst:
            low, high = noise.burst_steps
            remaining = int(rng.integers(low, high + 1))
            random_gripper = rng.random() < noise.burst_gripper
            burst = _burst(rng, noise, gripper=float(rng.choice([-1.0, 1.0])) if random_gripper else float(label[6]))
        executed = burst.copy()
        if remaining == 0:
            spread = noise.action * np.repeat([1.0, _ROTATION_SHARE, 0.0], (3, 3, 1))
            executed = np.clip(label + rng.normal(size=7) * spread, -1.0, 1.0)
        executed = executed.astype(np.float32)
        values = (environment.sim_state(), environment.proprio(), label, executed, remaining > 0)
        for column, value in zip(steps.values(), values, strict=True):
            column.append(value)
        remaining = max(remaining - 1, 0)
        success = environment.step(executed)
    return Trajectory(layout=layout, success=success, **{name: np.array(column) for name, column in steps.items()})


def _burst(rng: np.random.Generator, noise: Noise, *, gripper: float) -> Float[np.ndarray, "7"]:
    """One action that a burst repeats: it carries the hand away, a few centimetres at most."""
    translation = rng.uniform(-_BURST_SPEED, _BURST_SPEED, 3)
    rotation = rng.uniform(-_ROTATION_SHARE, _ROTATION_SHARE, 3)
    return np.concatenate([translation, rotation, [gripper]])


_ARRAYS = ("sim_state", "proprio", "label", "executed", "random")


def save_trajectories(path: Path, trajectories: Sequence[Trajectory], settings: Mapping[str, Any]) -> None:
    """Writes the episodes of one scene, and what they were made with, to an ``.npz`` file, atomically."""
    columns: dict[str, Any] = {name: np.concatenate([getattr(t, name) for t in trajectories]) for name in _ARRAYS}
    episodes = [{"layout": t.layout.to_json(), "success": t.success, "length": len(t.label)} for t in trajectories]
    header = json.dumps({"settings": settings, "episodes": episodes})
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as stream:
            np.savez_compressed(stream, header=np.frombuffer(header.encode(), np.uint8), **columns)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def load_trajectories(path: Path) -> tuple[list[Trajectory], dict[str, Any]]:
    """What ``save_trajectories`` wrote: the episodes and their settings.

    Raises:
        SimulationError: when the file is truncated or something else.
    """
    try:
        with np.load(path) as file:
            header = json.loads(file["header"].tobytes())
            columns = {name: file[name] for name in _ARRAYS}
        stops = np.cumsum([episode["length"] for episode in header["episodes"]])
        parts = {name: np.split(column, stops[:-1]) for name, column in columns.items()}
        trajectories = [
            Trajectory(
                layout=Layout.from_json(episode["layout"]),
                success=episode["success"],
                **{name: parts[name][index] for name in _ARRAYS},
            )
            for index, episode in enumerate(header["episodes"])
        ]
        return trajectories, header["settings"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SimulationError(f"Recorded states {path} cannot be read ({error}); delete the file") from error
