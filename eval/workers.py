"""The two kinds of process: simulators, which run one episode at a time, and the policy, which batches their looks.

Both are plain classes; ``eval.driver`` makes Ray actors of them.
"""

import os
import time
import traceback
from collections.abc import Callable
from typing import Any

from eval.agents import Agent
from eval.agents import Chunk
from eval.episode import run_episode
from eval.manifest import EpisodeSpec
from eval.results import Record
from eval.scenes import Scenes
from eval.videos import VideoOptions
from eval.videos import write_video
from pokevla_jax.serving.batching import Batcher


class Simulator:
    """Holds one environment for as long as its episodes share a scene."""

    def __init__(self, scenes: Scenes, agent: Agent, *, execute: int | None = None, videos: VideoOptions | None = None):
        self._scenes = scenes
        self._agent = agent
        self._execute = execute
        self._videos = videos
        self._environment: Any = None
        self._scene = ""

    def run(self, spec: EpisodeSpec) -> Record:
        """The episode's record; an exception becomes the outcome ``error`` with its traceback, never a failure."""
        start = time.perf_counter()
        try:
            return self._run(spec)
        except Exception as error:
            # Nobody knows what state the simulator is in now; the next episode gets a new one.
            self.close()
            return error_record(spec, traceback.format_exc(), f"{type(error).__name__}: {error}") | {
                "seconds": {"total": round(time.perf_counter() - start, 3)}
            }

    def _run(self, spec: EpisodeSpec) -> Record:
        start = time.perf_counter()
        if spec.scene != self._scene:
            self.close()
            self._environment = self._scenes.build(spec)
            self._scene = spec.scene
        self._scenes.place(self._environment, spec)
        reset_seconds = time.perf_counter() - start
        keep = self._videos is not None
        rollout = run_episode(self._environment, spec, self._agent, execute=self._execute, keep_states=keep)
        outcome = "success" if rollout.success else "failure"
        record = _facts(spec) | {
            "outcome": outcome,
            "steps": rollout.steps,
            "looks": rollout.looks,
            "seconds": {"reset": round(reset_seconds, 3)} | {k: round(v, 3) for k, v in rollout.seconds.items()},
            "final_state": rollout.final_state,
            "process": os.getpid(),
        }
        if self._videos is not None and self._videos.wants(outcome):
            path = self._videos.folder / f"{spec.id}.mp4"
            write_video(self._environment, rollout.states, path, caption=_caption(spec, outcome), options=self._videos)
        return record

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
        self._batcher = Batcher(self._policy.infer, self._policy.max_batch_size)

    async def metadata(self) -> dict[str, Any]:
        """What the policy says about itself; answered when it is loaded and compiled."""
        return dict(self._policy.metadata)

    async def infer(self, observation: dict[str, Any]) -> Chunk:
        """The action chunk ``[t, a]`` of one observation."""
        return await self._batcher.infer(observation)


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
