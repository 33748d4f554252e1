"""The two kinds of process: simulators, which run one episode at a time, and the policy, which batches their looks.

Both are plain classes; ``eval.driver`` and ``eval.policy_actors`` make Ray actors of them.
"""

import os
import platform
import resource
import tempfile
import time
import traceback
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval.agents import Agent
from eval.agents import CheckpointAgent
from eval.agents import Chunk
from eval.episode import Rollout
from eval.episode import run_episode
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.results import Record
from eval.scenes import Scenes
from eval.videos import VideoOptions
from eval.videos import write_video
from pokevla_jax.serving.batching import Batcher

POLICY_PATIENCE = 600.0
"""Seconds that a simulator waits for one chunk, a restart of the policy's process included."""


@dataclass(frozen=True)
class Hello:
    """What a simulator says when it has started.

    Attributes:
        host: name of its machine.
        node: Ray's name of it.
        pid: its process.
        facts: what the results of this host depend on, see ``Setup.host_facts``.
    """

    host: str
    node: str
    pid: int
    facts: Mapping[str, Any]


class AskPolicies:
    """Asks policy actors for a chunk: the first of ``actors`` that answers. They are set before each episode."""

    def __init__(self, patience: float = POLICY_PATIENCE):
        self._patience = patience
        self.actors: Sequence[Any] = ()

    def __call__(self, observation: dict[str, Any]) -> Chunk:
        """The chunk of one observation.

        A dead actor is passed over: a policy without memory can be asked twice, and Ray starts it again.

        Raises:
            EvaluationError: when none answers in time.
        """
        import ray
        from ray import exceptions

        deadline = time.monotonic() + self._patience
        while (left := deadline - time.monotonic()) > 0:
            for actor in self.actors:
                try:
                    return ray.get(actor.infer.remote(observation), timeout=left)
                except exceptions.GetTimeoutError:
                    break
                except (exceptions.RayActorError, exceptions.ObjectLostError):
                    continue
            else:
                time.sleep(0.5)  # all of them are starting again
        raise EvaluationError(f"the policy gave no answer within {self._patience:.0f} s")


class Simulator:
    """Holds one environment for as long as its episodes share a scene.

    Args:
        scenes: the benchmark's environments.
        agent: who acts, or None for the policy actors that ``run`` is given.
        execute: actions taken of each chunk.
        videos: which episodes are filmed.
        host_facts: see ``Setup``.
    """

    def __init__(
        self,
        scenes: Scenes,
        agent: Agent | None = None,
        *,
        execute: int | None = None,
        videos: VideoOptions | None = None,
        host_facts: Callable[[], Mapping[str, Any]] | None = None,
    ):
        self._scenes = scenes
        self._policies = AskPolicies()
        self._agent = agent or CheckpointAgent(self._policies)
        self._execute = execute
        self._videos = videos
        self._host_facts = host_facts
        self._environment: Any = None
        self._scene = ""

    def hello(self) -> Hello:
        """Answered when the process runs."""
        import ray

        facts = self._host_facts() if self._host_facts else {}
        return Hello(platform.node(), ray.get_runtime_context().get_node_id(), os.getpid(), facts)

    def run(self, spec: EpisodeSpec, policies: Sequence[Any] = ()) -> Record:
        """The episode's record; an exception becomes the outcome ``error`` with its traceback, never a failure.

        A filmed episode's mp4 is its entry ``video`` (bytes), for the driver to take out: only the driver writes files.
        """
        self._policies.actors = policies
        start = time.perf_counter()
        try:
            record = self._run(spec)
        except Exception as error:
            # Nobody knows what state the simulator is in now; the next episode gets a new one.
            self.close()
            record = error_record(spec, traceback.format_exc(), _reason(error)) | {
                "seconds": {"total": round(time.perf_counter() - start, 3)}
            }
        return record | {"host": platform.node(), "process": os.getpid(), "memory": memory_bytes()}

    def _run(self, spec: EpisodeSpec) -> Record:
        start = time.perf_counter()
        if spec.scene != self._scene:
            self.close()
            self._environment = self._scenes.build(spec)
            self._scene = spec.scene
        self._scenes.place(self._environment, spec)
        reset_seconds = time.perf_counter() - start
        keep = self._videos is not None
        rollout = run_episode(
            self._environment,
            spec,
            self._agent,
            execute=self._execute,
            interface=self._scenes.interface,
            keep_states=keep,
        )
        outcome = "success" if rollout.success else "failure"
        record = _facts(spec) | {
            "outcome": outcome,
            "steps": rollout.steps,
            "looks": rollout.looks,
            "seconds": {"reset": round(reset_seconds, 3)} | {k: round(v, 3) for k, v in rollout.seconds.items()},
            "final_state": rollout.final_state,
        }
        if self._videos is not None and self._videos.wants(outcome):
            record["video"] = self._film(spec, rollout, outcome, self._videos)
        return record

    def _film(self, spec: EpisodeSpec, rollout: Rollout, outcome: str, options: VideoOptions) -> bytes:
        with tempfile.TemporaryDirectory(prefix="pokevla-video-") as folder:
            path = Path(folder) / "episode.mp4"
            write_video(self._environment, rollout.states, path, caption=_caption(spec, outcome), options=options)
            return path.read_bytes()

    def close(self) -> None:
        """Drops the environment."""
        if self._environment is not None:
            self._environment.close()
        self._environment, self._scene = None, ""


class PolicyServer:
    """Answers every simulator's look, as many at once as are waiting when the network becomes free.

    The policy pads batches to its fixed sizes, compiled before the first episode.
    """

    def __init__(self, load: Callable[[], Any]):
        self._policy = load()
        self._since: float | None = None
        self._batcher = Batcher(self._compute, self._policy.max_batch_size)

    async def status(self) -> tuple[str, int, float]:
        """Ray's name of its machine, its process, and for how many seconds the batch at hand has been computed.

        Answered at once, however long that takes.
        """
        import ray

        seconds = 0.0 if self._since is None else time.monotonic() - self._since
        return ray.get_runtime_context().get_node_id(), os.getpid(), seconds

    async def infer(self, observation: dict[str, Any]) -> Chunk:
        """The action chunk ``[t, a]`` of one observation."""
        return await self._batcher.infer(observation)

    def _compute(self, observations: Sequence[dict[str, Any]]) -> Any:
        self._since = time.monotonic()
        try:
            return self._policy.infer(observations)
        finally:
            self._since = None


def memory_bytes() -> int:
    """Resident memory of this process."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:  # not Linux: the most it ever had, in kilobytes or bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * os.sysconf("SC_PAGE_SIZE")


def _reason(error: Exception) -> str:
    """What went wrong; of an error that came from another process by Ray, what went wrong there."""
    cause = getattr(error, "cause", None)
    cause = cause if isinstance(cause, Exception) else error
    return str(cause) if isinstance(cause, EvaluationError) else f"{type(cause).__name__}: {cause}"


def error_record(spec: EpisodeSpec, text: str, reason: str) -> Record:
    """The record of an attempt that says nothing about the policy; ``reason`` is one line, ``text`` all of it."""
    return _facts(spec) | {
        "outcome": "error",
        "steps": 0,
        "looks": 0,
        "seconds": {},
        "reason": reason.splitlines()[0] if reason else "",
        "error": text,
    }


def _facts(spec: EpisodeSpec) -> Record:
    # Where something was taken from the policy, the id of the episode as it is makes the pair.
    base = {"base_id": spec.base_id} if spec.control else {}
    return {"id": spec.id, **base, **spec.to_dict()}


def _caption(spec: EpisodeSpec, outcome: str) -> str:
    return f"{outcome}: {spec.instruction} [{spec.start}]"
