"""Where a run's time went, over all its restarts: ``goodput.json`` in its folder.

Goodput is the share of the time since the first start that was spent on steps which the run still has: what start-up,
waiting for data, checkpoints and evaluation took, what was computed after the last save and lost with the process, and
the time between the end of one attempt and the start of the next are counted against it.
"""

import itertools
import json
import time
from collections.abc import Callable
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
from etils import epath

from pokevla_jax.training.workdir import write_atomically

GOODPUT = "goodput.json"
LOSSES = ("startup", "data", "checkpoint", "evaluation", "lost", "down")

# A file this small is rewritten whole; more often than this would only wear a network file system.
EVERY_SECONDS = 10.0


class Goodput:
    """The account of this attempt, kept beside those of the attempts before it. Only the first host writes."""

    def __init__(self, workdir: epath.Path, started: float | None = None, clock: Callable[[], float] = time.time):
        """Opens the account; ``started`` is when the process began, as ``time.time()`` counts."""
        self._path, self._clock = workdir / GOODPUT, clock
        started = clock() if started is None else started
        self._attempts = read_attempts(workdir)
        self._own: dict[str, Any] = {"start": started, "end": started, "steps": 0}
        self._own |= {"startup": 0.0, "data": 0.0, "checkpoint": 0.0, "evaluation": 0.0, "saved": 0.0}
        self._loop_start: float | None = None
        self._written = 0.0
        self.write()

    def steps_begin(self) -> None:
        """Ends the start-up: the first step is about to be made."""
        self._loop_start = self._clock()
        self._own["startup"] = self._loop_start - self._own["start"]

    @contextmanager
    def losing(self, kind: str) -> Iterator[None]:
        """The time within is lost to ``kind``: data, checkpoint or evaluation."""
        start = self._clock()
        try:
            yield
        finally:
            self._own[kind] += self._clock() - start

    def add(self, kind: str, seconds: float) -> None:
        """Counts ``seconds`` as lost to ``kind``."""
        self._own[kind] += seconds

    def step(self, count: int) -> None:
        """Notes that ``count`` steps of this attempt are done; writes now and then."""
        self._own["steps"] = count
        if self._clock() - self._written > EVERY_SECONDS:
            self.write()

    def saved(self) -> None:
        """What was computed so far is safe."""
        self._own["saved"] = self._training()
        self.write()

    def write(self) -> None:
        """Writes the account of all attempts."""
        self._own["end"] = self._written = self._clock()
        if jax.process_index() == 0:
            attempts = [*self._attempts, self._own | {"training": self._training()}]
            write_atomically(self._path, json.dumps({"attempts": attempts} | totals(attempts), indent=1) + "\n")

    def share(self) -> float:
        """The goodput of the run so far, in [0, 1]."""
        self._own["end"] = self._clock()
        return totals([*self._attempts, self._own | {"training": self._training()}])["goodput"]

    def _training(self) -> float:
        if self._loop_start is None:
            return 0.0
        lost = sum(self._own[kind] for kind in ("data", "checkpoint", "evaluation"))
        return max(self._clock() - self._loop_start - lost, 0.0)


def read_attempts(workdir: epath.Path) -> list[dict[str, Any]]:
    """The attempts before this one; none where the account is missing or was cut short."""
    path = workdir / GOODPUT
    try:
        return list(json.loads(path.read_text())["attempts"]) if path.exists() else []
    except (ValueError, KeyError, TypeError):
        # An account is no reason to stop a run: it begins anew.
        return []


def totals(attempts: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds by where they went, over all attempts, and the goodput."""
    lost = sum(a["training"] - a["saved"] for a in attempts[:-1])
    down = sum(max(b["start"] - a["end"], 0.0) for a, b in itertools.pairwise(attempts))
    sums = {kind: sum(a[kind] for a in attempts) for kind in ("startup", "data", "checkpoint", "evaluation")}
    productive = sum(a["training"] for a in attempts) - lost
    total = max(attempts[-1]["end"] - attempts[0]["start"], 1e-9)
    shares = {"total": total, "productive": productive, **sums, "lost": lost, "down": down}
    return {**shares, "goodput": min(productive / total, 1.0), "restarts": len(attempts) - 1}
