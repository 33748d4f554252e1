"""Hands out episodes one at a time to simulator actors and survives the loss of any of them.

There are no fixed shares of work: an idle simulator gets the next episode, of its own scene if one is left, so that no
scene is compiled twice without need and no one waits for a slow tail. Hosts may join and leave at any time.
"""

import contextlib
import time
from collections import deque
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from eval.agents import Agent
from eval.cluster import kill_process
from eval.cluster import living_nodes
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.policy_actors import PolicyActor
from eval.policy_actors import PolicyPool
from eval.policy_actors import last_line
from eval.results import Record
from eval.scenes import Scenes
from eval.videos import VideoOptions
from eval.workers import Hello
from eval.workers import Simulator
from eval.workers import error_record

TICK = 2.0
"""Seconds between two looks at what has joined, died or hangs."""


@dataclass(frozen=True)
class Setup:
    """What every simulator is built from.

    Attributes:
        scenes: the benchmark's environments.
        agent: who acts, or None for the policy that ``load_policy`` gives.
        load_policy: makes the policy inside its actor; needed where ``agent`` is None.
        execute: actions taken of each chunk.
        videos: which episodes are filmed.
        host_facts: what results depend on and hosts may differ in, such as versions; called on the driver's host and by
            each simulator, and must give the same.
        policy_actors: how many policy processes; None takes one per accelerator, or one.
    """

    scenes: Scenes
    agent: Agent | None = None
    load_policy: Callable[[], Any] | None = None
    execute: int | None = None
    videos: VideoOptions | None = None
    host_facts: Callable[[], Mapping[str, Any]] | None = None
    policy_actors: int | None = None


@dataclass(frozen=True)
class Limits:
    """When an attempt or a process is given up; no result depends on it.

    Attributes:
        retries: further attempts for an episode that ended in an error, hung, or whose simulator died.
        episode_seconds, step_seconds: an episode may take the first, and the second for each step of its budget.
        policy_seconds: a policy process that computes one batch for longer is killed and started again.
        start_seconds: the run ends when no simulator has run for so long.
        episodes: a simulator process is replaced after so many.
        memory_bytes: ... or when it has taken more memory than this.
    """

    retries: int = 2
    episode_seconds: float = 300.0
    step_seconds: float = 1.0
    policy_seconds: float = 300.0
    start_seconds: float = 900.0
    episodes: int = 200
    memory_bytes: float = 4 * 2**30

    def seconds(self, spec: EpisodeSpec) -> float:
        """How long an attempt at the episode may take."""
        return self.episode_seconds + self.step_seconds * spec.max_steps


class Queue:
    """Episodes still to be run, by scene."""

    def __init__(self, specs: Sequence[EpisodeSpec]):
        self._scenes: dict[str, deque[EpisodeSpec]] = {}
        for spec in specs:
            self._scenes.setdefault(spec.scene, deque()).append(spec)

    def take(self, scene: str, taken: Sequence[str] = ()) -> EpisodeSpec | None:
        """The next episode of ``scene``; else of the fullest scene that no one works on; else of the fullest."""
        if not self._scenes:
            return None
        if scene not in self._scenes:
            free = [name for name in self._scenes if name not in taken] or list(self._scenes)
            scene = max(free, key=lambda name: len(self._scenes[name]))
        spec = self._scenes[scene].popleft()
        if not self._scenes[scene]:
            del self._scenes[scene]
        return spec

    def put_back(self, spec: EpisodeSpec) -> None:
        """Returns an episode for another attempt, to the front: what fails should show early."""
        self._scenes.setdefault(spec.scene, deque()).appendleft(spec)


@dataclass
class _Worker:
    """A simulator actor as the driver sees it: starting (``answer``, no ``hello``), idle, or running ``spec``."""

    actor: Any
    answer: Any
    hello: Hello | None = None
    scene: str = ""
    spec: EpisodeSpec | None = None
    policy: PolicyActor | None = None
    deadline: float = 0.0
    episodes: int = 0


class Driver:
    """Runs episodes on simulator actors of an initialised ``ray``; good for one run.

    Args:
        ray: the module.
        setup: what simulators and policy are built from.
        workers: how many simulators; None takes one per core of the hosts that are there.
        limits: when attempts and processes are given up.
        save_video: keeps an episode's mp4, by id.
    """

    def __init__(
        self,
        *,
        ray: ModuleType,
        setup: Setup,
        workers: int | None,
        limits: Limits | None = None,
        save_video: Callable[[str, bytes], None] | None = None,
    ):
        self.ray = ray
        self.setup = setup
        self.workers = workers
        self.limits = limits or Limits()
        self._save_video = save_video
        self._workers: list[_Worker] = []
        self._policies: PolicyPool | None = None
        self._nodes: list[dict[str, Any]] = []
        self._deaths, self._alive_at, self._next_look = 0, time.monotonic(), 0.0

    def run(self, specs: Sequence[EpisodeSpec], on_record: Callable[[Record], None]) -> None:
        """Runs every episode; ``on_record`` gets one record for each, as soon as it is known.

        Raises:
            EvaluationError: when the policy cannot be loaded, no simulator process can be kept alive, or hosts differ.
        """
        self._queue = Queue(specs)
        self._specs = {spec.id: spec for spec in specs}
        self._left = len(specs)
        self._attempts = dict.fromkeys(self._specs, 0)
        self._on_record = on_record
        self._facts = self.setup.host_facts() if self.setup.host_facts else {}
        try:
            self._nodes = living_nodes(self.ray)
            self._fill()  # they start while the policy is loaded
            if self.setup.agent is None:
                assert self.setup.load_policy is not None
                self._policies = PolicyPool(
                    self.ray, self.setup.load_policy, self.setup.policy_actors, self.limits.policy_seconds
                )
                self._policies.start(self._nodes, time.monotonic())
            self._alive_at = time.monotonic()
            while self._left:
                self._turn()
        finally:
            with contextlib.suppress(Exception):  # the cluster may be gone
                self._close()

    def _close(self) -> None:
        for worker in self._workers:
            self.ray.kill(worker.actor)
        self._workers.clear()
        if self._policies is not None:
            self._policies.close()

    def _turn(self) -> None:
        """Waits for answers until the next look at the cluster, hears them, and hands out episodes."""
        if time.monotonic() >= self._next_look:
            self._look()
            self._next_look = time.monotonic() + TICK
        waiting = {worker.answer: worker for worker in self._workers if worker.answer is not None}
        timeout = max(0.0, self._next_look - time.monotonic())
        if not waiting:
            time.sleep(timeout)
            return
        done, _ = self.ray.wait(list(waiting), num_returns=1, timeout=timeout)
        for answer in done:
            self._hear(waiting[answer])
        for worker in self._workers:
            if worker.hello is not None and worker.spec is None:
                self._hand_out(worker)

    def _look(self) -> None:
        """What has joined, died or hangs."""
        now = time.monotonic()
        self._nodes = living_nodes(self.ray)
        if self._policies is not None:
            self._policies.refresh(self._nodes, now)
            self._policies.watch(now)
        for worker in [w for w in self._workers if w.spec is not None and now > w.deadline]:
            spec = worker.spec
            assert spec is not None
            reason = f"not over after {self.limits.seconds(spec):.0f} s: the simulator or the policy hangs"
            self._drop(worker)
            self._settle(error_record(spec, reason, reason))
        self._fill()
        if any(worker.hello is not None for worker in self._workers):
            self._alive_at = now
        elif now - self._alive_at > self.limits.start_seconds:
            free, cores = self.ray.available_resources().get("CPU", 0), self.ray.cluster_resources().get("CPU", 0)
            raise EvaluationError(
                f"No simulator has started within {self.limits.start_seconds / 60:.0f} minutes: {free:.0f} of the "
                f"{cores:.0f} cores on {len(self._nodes)} hosts are free"
            )

    def _fill(self) -> None:
        """Starts simulators until there are as many as wanted."""
        cores = sum(int(node["Resources"].get("CPU", 0)) for node in self._nodes)
        wanted = min(self.workers or max(cores, 1), self._left)
        setup = self.setup
        simulator = self.ray.remote(Simulator).options(num_cpus=1, max_restarts=0, scheduling_strategy="SPREAD")
        for _ in range(wanted - len(self._workers)):
            actor = simulator.remote(
                setup.scenes, setup.agent, execute=setup.execute, videos=setup.videos, host_facts=setup.host_facts
            )
            # It gets no episode before it runs: without a free core it waits for one, maybe for hours.
            self._workers.append(_Worker(actor, actor.hello.remote()))

    def _hear(self, worker: _Worker) -> None:
        """Takes note of what a simulator answered, or that it is dead."""
        answer, worker.answer = worker.answer, None
        try:
            result = self.ray.get(answer)
        except self.ray.exceptions.RayTaskError as error:
            cause = last_line(getattr(error, "cause", None) or error)
            raise EvaluationError(f"A simulator could not be started: {cause}") from error
        except self.ray.exceptions.RayError as error:
            self._bury(worker, error)
            return
        if isinstance(result, Hello):
            self._welcome(worker, result)
            return
        self._deaths = 0
        worker.episodes += 1
        worker.spec = None
        self._release_policy(worker)
        if worker.episodes >= self.limits.episodes or result["memory"] > self.limits.memory_bytes:
            self._drop(worker)
        self._settle(result)
        self._fill()

    def _welcome(self, worker: _Worker, hello: Hello) -> None:
        for name, mine in self._facts.items():
            if hello.facts.get(name) != mine:
                raise EvaluationError(
                    f"Host {hello.host} has {name} {hello.facts.get(name)}, not {mine} as this one; make them equal or "
                    "take it out of the cluster"
                )
        worker.hello = hello

    def _bury(self, worker: _Worker, error: Exception) -> None:
        """Replaces a dead simulator; its episode goes to another one."""
        spec = worker.spec
        self._drop(worker)
        self._nodes = living_nodes(self.ray)
        # A host that is gone takes its episodes along through no fault of theirs.
        lost = worker.hello is not None and worker.hello.node not in {node["NodeID"] for node in self._nodes}
        self._deaths += not lost
        allowed = 3 + self.limits.retries * max(self.workers or 1, len(self._workers))
        if self._deaths > allowed:
            raise EvaluationError(
                f"{self._deaths} simulator processes died one after the other (out of memory?); try fewer --workers. "
                f"The last one: {last_line(error)}"
            ) from error
        if spec is not None:
            self._settle(error_record(spec, str(error), "the simulator process died"), counts=not lost)
        self._fill()

    def _settle(self, record: Record, *, counts: bool = True) -> None:
        """Reports the end of an attempt, or puts its episode back for another one."""
        episode_id = record["id"]
        self._attempts[episode_id] += counts
        if record["outcome"] == "error" and (not counts or self._attempts[episode_id] <= self.limits.retries):
            self._queue.put_back(self._specs[episode_id])
            return
        self._left -= 1
        video = record.pop("video", None)
        if video is not None and self._save_video is not None:
            self._save_video(episode_id, video)
        self._on_record(record | {"attempts": self._attempts[episode_id]})

    def _hand_out(self, worker: _Worker) -> None:
        choice: list[PolicyActor] = []
        if self._policies is not None:
            assert worker.hello is not None
            choice = self._policies.choose(worker.hello.node)
            if not choice:
                return
        spec = self._queue.take(worker.scene, [other.scene for other in self._workers if other is not worker])
        if spec is None:
            return
        if choice:
            worker.policy = choice[0]
            worker.policy.episodes += 1
        worker.spec, worker.scene = spec, spec.scene
        worker.deadline = time.monotonic() + self.limits.seconds(spec)
        worker.answer = worker.actor.run.remote(spec, [actor.handle for actor in choice])

    def _drop(self, worker: _Worker) -> None:
        """Ends a simulator's process, whatever state it is in."""
        self._workers.remove(worker)
        self._release_policy(worker)
        self.ray.kill(worker.actor)
        if worker.hello is not None:
            kill_process(self.ray, worker.hello.node, worker.hello.pid)

    def _release_policy(self, worker: _Worker) -> None:
        if worker.policy is not None:
            worker.policy.episodes -= 1
            worker.policy = None
