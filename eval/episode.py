"""One closed-loop episode: look, act for a chunk, look again, until the goal holds or the budget is spent."""

import hashlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from dataclasses import field
from typing import Any
from typing import Literal

import numpy as np

from eval.agents import Agent
from eval.agents import Chunk
from eval.agents import check_chunk
from eval.controls import perceived
from eval.images import Preprocessing
from eval.images import prepare
from eval.manifest import EpisodeSpec

Gripper = Literal["given", "sign"]


@dataclass(frozen=True)
class Interface:
    """What lies between simulator and policy.

    Attributes:
        images: what becomes of the rendered images before the policy sees them.
        gripper: what becomes of an action's last number (-1 open, +1 close). ``given``: nothing; robosuite's gripper
            reads its sign. ``sign``: -1, 0 or +1, as OpenVLA-OFT's evaluator sends it.
    """

    images: Preprocessing = "native"
    gripper: Gripper = "given"

    def shown(self, observation: dict[str, Any]) -> dict[str, Any]:
        """What the policy gets of what the environment sees."""
        return observation | {"images": prepare(observation["images"], self.images)}

    def sent(self, chunk: Chunk) -> Chunk:
        """What the robot gets of what the policy wants."""
        if self.gripper == "given":
            return chunk
        return np.concatenate([chunk[:, :-1], np.sign(chunk[:, -1:])], axis=1)


@dataclass
class Rollout:
    """What happened.

    Attributes:
        success: the goal held after some step.
        steps: actions executed.
        looks: times the policy was asked.
        seconds: wall-clock time of ``physics``, ``rendering`` and ``policy`` (waiting for the policy included).
        states: the simulator state after reset and after every step, if kept: enough to render the episode later.
        final_state: hash of the last simulator state, to tell two runs of an episode apart.
    """

    success: bool = False
    steps: int = 0
    looks: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"physics": 0.0, "rendering": 0.0, "policy": 0.0})
    states: list[np.ndarray] = field(default_factory=list)
    final_state: str = ""

    @contextmanager
    def clock(self, part: str) -> Iterator[None]:
        """Adds the time of the block to ``seconds[part]``."""
        start = time.perf_counter()
        yield
        self.seconds[part] += time.perf_counter() - start


def run_episode(
    environment: Any,
    spec: EpisodeSpec,
    agent: Agent,
    *,
    execute: int | None = None,
    interface: Interface = Interface(),
    keep_states: bool = False,
    render_every_step: bool = False,
) -> Rollout:
    """The rollout of ``agent`` in ``environment``, which already stands at the episode's start.

    Each chunk is executed open loop; images are rendered only when the agent looks. Success is tested after every step
    and ends the episode.

    Args:
        environment: a ``LiberoEnvironment`` or anything with its ``observe``, ``step`` and ``sim_state``.
        spec: the episode; it says what the agent is told and shown.
        agent: who acts.
        execute: actions taken of each chunk; all of them by default.
        interface: what lies between the two.
        keep_states: keep the simulator states.
        render_every_step: also render after every step, as evaluators do that do not render on demand (for benchmarks).
    """
    rollout = Rollout()
    agent.begin(environment, spec)
    if keep_states:
        rollout.states.append(environment.sim_state())
    while rollout.steps < spec.max_steps and not rollout.success:
        observation = None
        if agent.needs_images:
            with rollout.clock("rendering"):
                observation = interface.shown(perceived(environment.observe(), spec))
        with rollout.clock("policy"):
            chunk = interface.sent(check_chunk(agent.act(observation)))[:execute]
        rollout.looks += 1
        for action in chunk[: spec.max_steps - rollout.steps]:
            with rollout.clock("physics"):
                rollout.success = bool(environment.step(action))
            rollout.steps += 1
            if keep_states:
                rollout.states.append(environment.sim_state())
            if render_every_step:
                with rollout.clock("rendering"):
                    environment.observe()
            if rollout.success:
                break
    rollout.final_state = hashlib.sha256(environment.sim_state().tobytes()).hexdigest()[:16]
    return rollout
