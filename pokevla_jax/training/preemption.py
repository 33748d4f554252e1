"""A request to stop: finish the step, save, leave with a status of its own."""

import signal
import types

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75
"""Exit status of a run that saved and stopped on request (EX_TEMPFAIL): start it again to continue."""


class PreemptionGuard:
    """Within the context, SIGTERM and SIGINT ask the loop to stop; a second signal ends the process at once."""

    def __init__(self) -> None:
        self._signal: str | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "PreemptionGuard":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def requested(self, step: int) -> str | None:
        """The reason to stop after ``step``, the same on every host, or None."""
        if jax.process_count() > 1:
            # JAX's coordination service catches SIGTERM on any host and picks a step that all of them will reach.
            return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None
        return self._signal

    def _note(self, number: int, _: types.FrameType | None) -> None:
        self._signal = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()
