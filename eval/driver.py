"""Hands out episodes one at a time to simulator actors and survives the loss of any of them.

There are no fixed shares of work: an idle simulator gets the next episode, of its own scene if one is left, so that no
scene is compiled twice without need and no one waits for a slow tail.
"""

from collections import deque
from collections.abc import Callable
from collections.abc import Sequence
from dataclasses import dataclass
from dataclasses import field
from types import ModuleType
from typing import Any

from eval.agents import Agent
from eval.agents import CheckpointAgent
from eval.errors import EvaluationError
from eval.manifest import EpisodeSpec
from eval.results import Record
from eval.scenes import Scenes
from eval.videos import VideoOptions
from eval.workers import PolicyServer
from eval.workers import Simulator
from eval.workers import error_record


@dataclass(frozen=True)
class Setup:
    """What every simulator is built from.

    Attributes:
        scenes: the benchmark's environments.
        agent: who acts, or None for the policy that ``load_policy`` gives.
        load_policy: makes the policy inside its actor; needed where ``agent`` is None.
        execute: actions taken of each chunk.
        videos: which episodes are filmed.
    """

    scenes: Scenes
    agent: Agent | None = None
    load_policy: Callable[[], Any] | None = None
    execute: int | None = None
    videos: VideoOptions | None = None


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
    """A simulator actor as the driver sees it."""

    actor: Any
    scene: str = ""
    spec: EpisodeSpec | None = None


@dataclass
class Driver:
    """Runs episodes on ``workers`` simulator actors of an initialised ``ray``.

    Attributes:
        retries: further attempts for an episode that ended in an error or whose worker died.
    """

    ray: ModuleType
    setup: Setup
    workers: int
    retries: int = 2
    _workers: list[_Worker] = field(default_factory=list)
    _policy: Any = None

    def run(self, specs: Sequence[EpisodeSpec], on_record: Callable[[Record], None]) -> None:
        """Runs every episode; ``on_record`` gets one record for each, as soon as it is known.

        Raises:
            EvaluationError: when the policy cannot be loaded, or no simulator process can be kept alive.
        """
        try:
            self._run(specs, on_record)
        finally:
            for actor in [worker.actor for worker in self._workers] + [self._policy]:
                if actor is not None:
                    self.ray.kill(actor)

    def _run(self, specs: Sequence[EpisodeSpec], on_record: Callable[[Record], None]) -> None:
        queue, attempts, deaths = Queue(specs), dict.fromkeys((s.id for s in specs), 0), 0
        agent = self.setup.agent or self._start_policy()
        self._workers = [_Worker(self._new_actor(agent)) for _ in range(min(self.workers, len(specs)))]
        running: dict[Any, _Worker] = {}
        for worker in self._workers:
            self._hand_out(queue, worker, running)
        while running:
            (done,), _ = self.ray.wait(list(running), num_returns=1)
            worker = running.pop(done)
            spec = worker.spec
            assert spec is not None
            attempts[spec.id] += 1
            try:
                record = self.ray.get(done)
                deaths = 0
            except self.ray.exceptions.RayActorError as error:
                deaths += 1
                record = error_record(spec, str(error), "the simulator process died")
                if deaths > self.retries * self.workers:
                    raise EvaluationError(
                        f"{deaths} simulator processes died one after the other (out of memory?); try fewer --workers"
                    ) from error
                worker.actor, worker.scene = self._new_actor(agent), ""
            if record["outcome"] == "error" and attempts[spec.id] <= self.retries:
                queue.put_back(spec)
            else:
                on_record(record | {"attempts": attempts[spec.id]})
            self._hand_out(queue, worker, running)

    def _hand_out(self, queue: Queue, worker: _Worker, running: dict[Any, _Worker]) -> None:
        worker.spec = queue.take(worker.scene, [other.scene for other in self._workers if other is not worker])
        if worker.spec is not None:
            worker.scene = worker.spec.scene
            running[worker.actor.run.remote(worker.spec)] = worker

    def _new_actor(self, agent: Agent) -> Any:
        setup = self.setup
        simulator = self.ray.remote(Simulator).options(num_cpus=1, max_restarts=0)
        return simulator.remote(setup.scenes, agent, execute=setup.execute, videos=setup.videos)

    def _start_policy(self) -> Agent:
        """The policy actor, warm; Ray restarts it if it dies and asks it again, which changes no answer."""
        server = self.ray.remote(PolicyServer).options(
            num_cpus=0, max_restarts=3, max_task_retries=-1, max_concurrency=4 * max(self.workers, 1)
        )
        self._policy = server.remote(self.setup.load_policy)
        try:
            self.ray.get(self._policy.metadata.remote())
        except self.ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            raise EvaluationError(f"The policy could not be loaded: {_last_line(cause)}") from error
        return CheckpointAgent(RemoteInfer(self._policy))


class RemoteInfer:
    """Asks the policy actor and waits; picklable, so it travels to the simulators."""

    def __init__(self, actor: Any):
        self._actor = actor

    def __call__(self, observation: dict[str, Any]) -> Any:
        """The chunk of one observation."""
        import ray

        return ray.get(self._actor.infer.remote(observation))


def _last_line(error: BaseException) -> str:
    """A remote error as one line: its last, without Ray's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
