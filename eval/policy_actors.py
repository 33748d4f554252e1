"""The policy's processes on a cluster: where they run, which one a simulator asks, and what happens when one hangs."""

from collections import Counter
from collections.abc import Callable
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from eval.cluster import kill_process
from eval.errors import EvaluationError
from eval.workers import PolicyServer

ACCELERATORS = ("TPU", "GPU")
LOAD_SECONDS = 1800.0
GRACE_SECONDS = 30.0
MAX_DEATHS = 3


@dataclass(frozen=True)
class Place:
    """Where one policy process belongs: a node, and which kind of accelerator it takes one of ("" for none)."""

    node: str
    accelerator: str = ""


def places(nodes: Sequence[Mapping[str, Any]], count: int | None) -> list[Place]:
    """One place per accelerator, hosts in turn; without accelerators one, or ``count`` over the hosts.

    Args:
        nodes: the living nodes, as ``ray.nodes()`` describes them.
        count: at most so many; None takes every accelerator, or one process where there is none.
    """
    found = [
        (number, position, Place(node["NodeID"], kind))
        for position, node in enumerate(nodes)
        for kind in ACCELERATORS
        for number in range(int(node["Resources"].get(kind, 0)))
    ]
    if found:
        return [place for _, _, place in sorted(found, key=lambda entry: entry[:2])][:count]
    return [Place(nodes[number % len(nodes)]["NodeID"]) for number in range(count or 1)] if nodes else []


@dataclass
class PolicyActor:
    """A policy process as the driver sees it; ``ready`` from its first answer on."""

    handle: Any
    place: Place
    question: Any
    asked_at: float
    ready: bool = False
    node: str = ""
    pid: int = 0
    episodes: int = 0


class PolicyPool:
    """Keeps the policy's actors alive.

    Ray starts a dead one again, elsewhere if its node is gone. Between episodes a simulator is sent to those of its own
    node first, then to the one with the fewest simulators.

    Args:
        ray: the initialised module.
        load: makes the policy inside its process.
        count: see ``places``.
        patience: seconds without an answer, or with one batch, after which a process is killed and started again.
    """

    def __init__(self, ray: ModuleType, load: Callable[[], Any], count: int | None, patience: float):
        self._ray = ray
        self._load = load
        self._count = count
        self._patience = patience
        self._deaths = 0
        self.actors: list[PolicyActor] = []

    def start(self, nodes: Sequence[Mapping[str, Any]], now: float) -> None:
        """Starts the processes and waits until the policy is loaded in one, and for a while until it is in the others.

        Raises:
            EvaluationError: when it cannot be loaded.
        """
        self.refresh(nodes, now)
        questions = [actor.question for actor in self.actors]
        done, _ = self._ray.wait(questions, num_returns=1, timeout=LOAD_SECONDS)
        if not done:
            raise EvaluationError(
                f"The policy was not loaded within {LOAD_SECONDS / 60:.0f} minutes; are its accelerators taken?"
            )
        done, _ = self._ray.wait(questions, num_returns=len(questions), timeout=GRACE_SECONDS)
        for actor in list(self.actors):
            if actor.question in done:
                self._hear(actor, now)

    def refresh(self, nodes: Sequence[Mapping[str, Any]], now: float) -> None:
        """Starts processes on hosts that have joined."""
        wanted = places(nodes, self._count)
        free = Counter(wanted) - Counter(actor.place for actor in self.actors)
        for place in list(free.elements())[: max(0, len(wanted) - len(self.actors))]:
            self._start(place, now)

    def watch(self, now: float) -> None:
        """Takes note of answers, asks again, and starts those again that hang.

        Raises:
            EvaluationError: when they keep dying for good.
        """
        for actor in list(self.actors):
            if actor.question is None:
                actor.question, actor.asked_at = actor.handle.status.remote(), now
                continue
            done, _ = self._ray.wait([actor.question], timeout=0)
            if done:
                self._hear(actor, now)
            elif actor.ready and now - actor.asked_at > self._patience:
                self._restart(actor)

    def choose(self, node: str) -> list[PolicyActor]:
        """All that have loaded, the nearest and least busy first."""
        return sorted((a for a in self.actors if a.ready), key=lambda a: (a.node != node, a.episodes))

    def close(self) -> None:
        """Ends all processes."""
        for actor in self.actors:
            self._ray.kill(actor.handle)
        self.actors.clear()

    def _start(self, place: Place, now: float) -> None:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        takes: dict[str, dict[str, Any]] = {"GPU": {"num_gpus": 1}, "TPU": {"resources": {"TPU": 1}}, "": {}}
        server = self._ray.remote(PolicyServer).options(
            num_cpus=0,
            # Ray starts it again as often as it dies; who asked it meanwhile asks another one, or again.
            max_restarts=-1,
            max_task_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(place.node, soft=True),
            **takes[place.accelerator],
        )
        handle = server.remote(self._load)
        self.actors.append(PolicyActor(handle, place, handle.status.remote(), now))

    def _hear(self, actor: PolicyActor, now: float) -> None:
        question, actor.question = actor.question, None
        exceptions = self._ray.exceptions
        try:
            actor.node, actor.pid, seconds = self._ray.get(question)
        except exceptions.ActorUnavailableError:
            return  # it is being started again
        except exceptions.RayError as error:
            cause = getattr(error, "cause", None) or error
            self._deaths += 1
            self.actors.remove(actor)
            if not actor.ready or self._deaths > MAX_DEATHS:
                raise EvaluationError(f"The policy could not be loaded: {last_line(cause)}") from error
            return  # ``refresh`` starts another one
        actor.ready = True
        if seconds > self._patience:
            self._restart(actor)

    def _restart(self, actor: PolicyActor) -> None:
        kill_process(self._ray, actor.node, actor.pid)
        actor.question = None


def last_line(error: BaseException) -> str:
    """A remote error as one line: its last, without Ray's traceback."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__
