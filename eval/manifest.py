"""What an evaluation will run: an immutable list of episode specifications, written before anything is simulated.

An episode's id is the hash of its specification, so the same episode has the same id whatever the policy, the machine
and the order: results are resumed and compared by id alone.
"""

import dataclasses
import difflib
import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Literal

from eval.errors import EvaluationError

LayoutKind = Literal["moved", "shared"]
# Categories of perturbation that are played in scenes of their own; the others share their task's.
OWN_SCENE = ("light", "background", "layout")


@dataclass(frozen=True, order=True)
class LayoutSpec:
    """A sampled layout: the simulator draws it again from these three values and the task."""

    kind: LayoutKind
    seed: int
    index: int


@dataclass(frozen=True)
class EpisodeSpec:
    """One episode, completely: where it starts, what is asked, and when it ends.

    Attributes:
        benchmark: one of ``eval.benchmarks.BENCHMARKS``.
        suite: LIBERO suite, such as ``libero_object``.
        task: index of the task in the suite's benchmark order.
        task_name: the task's name, so that a results file reads without the simulator.
        prompt: the task's instruction, which the policy is given.
        max_steps: policy steps after settling; the budget of a failure.
        seed: seed of the episode's own randomness (environment and ``random`` policy).
        init_state: index of a stored initial state, or None.
        layout: a sampled layout, or None.
        perturbation: LIBERO-Plus's name of what is changed (the task's name there is ``task_name`` and this), or None.
        category: kind of perturbation, such as ``camera``; None without one.
        level: difficulty of the perturbation, 1 to 5; None where the benchmark gives none.
        control: what was taken from the policy (``controls.ABLATIONS``), or None for the policy as it is.
        told: the instruction that the policy is given instead of ``prompt``; the task's own goal still decides.
    """

    benchmark: str
    suite: str
    task: int
    task_name: str
    prompt: str
    max_steps: int
    seed: int = 0
    init_state: int | None = None
    layout: LayoutSpec | None = None
    perturbation: str | None = None
    category: str | None = None
    level: int | None = None
    control: str | None = None
    told: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; entries that are None are left out, so that later kinds of episode keep today's ids."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "EpisodeSpec":
        """The inverse of ``to_dict``."""
        values = dict(values)
        if values.get("layout") is not None:
            values["layout"] = LayoutSpec(**values["layout"])
        return cls(**values)

    @functools.cached_property
    def id(self) -> str:
        """Sixteen hexadecimal digits: the hash of the specification."""
        return digest(self.to_dict())

    @functools.cached_property
    def base_id(self) -> str:
        """The id of the same episode without its control: equal ones are pairs."""
        return dataclasses.replace(self, control=None, told=None).id

    @property
    def instruction(self) -> str:
        """What the policy is told."""
        return self.prompt if self.told is None else self.told

    @property
    def scene(self) -> str:
        """Episodes with the same scene can share one compiled environment."""
        if self.layout is not None and self.layout.kind == "shared":
            return f"{self.suite}/shared"
        if self.category in OWN_SCENE:
            return f"{self.suite}/{self.task}/{self.perturbation}"
        return f"{self.suite}/{self.task}"

    @property
    def start(self) -> str:
        """Where the episode starts, in words, for tables and captions."""
        if self.perturbation is not None:
            return f"{self.category} {self.perturbation}"
        if self.layout is None:
            return f"stored state {self.init_state}"
        return f"{self.layout.kind} layout {self.layout.seed}/{self.layout.index}"

    def random_seed(self) -> int:
        """A seed folded from the id: independent of what else runs, and where, and equal for pairs."""
        return int(self.base_id, 16)


def digest(value: Any, length: int = 16) -> str:
    """First ``length`` hexadecimal digits of the SHA-256 of ``value`` as canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def parse_indices(text: str, option: str, *, limit: int | None = None) -> tuple[int, ...]:
    """Indices of ``"40-49"``, ``"0,1"`` or ``"0-3,7"``, in the order given.

    Raises:
        EvaluationError: for anything else, a repeated index, or one not below ``limit``; names ``option``.
    """
    indices: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise EvaluationError(
                f"{option} {text!r}: {part.strip()!r} is not an index; write for example 40-49 or 0,3"
            )
        low, high = int(first), int(last) if dash else int(first)
        if high < low:
            raise EvaluationError(f"{option} {text!r}: the range {part.strip()} runs backwards; write {high}-{low}")
        indices.extend(range(low, high + 1))
    if len(set(indices)) < len(indices):
        raise EvaluationError(f"{option} {text!r} names an index twice; each episode is run once")
    if limit is not None and max(indices) >= limit:
        raise EvaluationError(f"{option} {text!r}: there is no index {max(indices)}; the last one is {limit - 1}")
    return tuple(indices)


def is_indices(text: str) -> bool:
    """Whether ``--tasks`` holds indices rather than names."""
    return text.replace(",", "").replace("-", "").replace(" ", "").isdecimal()


def select_tasks(text: str, names: Sequence[str], suite: str) -> tuple[int, ...]:
    """Task indices of ``--tasks``: ``all``, indices, or full task names separated by commas.

    Raises:
        EvaluationError: for a task that the suite lacks, naming the nearest.
    """
    if text == "all":
        return tuple(range(len(names)))
    if is_indices(text):
        return parse_indices(text, "--tasks", limit=len(names))
    selected = []
    for name in (part.strip() for part in text.split(",")):
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
            hint = f"the nearest is {near[0]}" if near else f"it has {', '.join(names)}"
            raise EvaluationError(f"--tasks: {suite} has no task {name!r}; {hint} (or give its index in the suite)")
        selected.append(names.index(name))
    return tuple(selected)


def check_unique(specs: Sequence[EpisodeSpec]) -> None:
    """Raises ``EvaluationError`` for an empty list or one that holds the same episode twice."""
    if not specs:
        raise EvaluationError("No episode to run: the options leave none")
    if len({spec.id for spec in specs}) < len(specs):
        raise EvaluationError("The list holds the same episode twice; give each task and initial state once")
