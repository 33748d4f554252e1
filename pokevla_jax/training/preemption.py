"""A request to stop: finish the step, save, leave with a status of its own."""

import os
import signal
import types

import jax
from jax.experimental import multihost_utils

PREEMPTED = 75
"""Exit status of a run that saved and stopped on request (EX_TEMPFAIL): start it again to continue."""


class PreemptionGuard:
    """Within the context, SIGTERM and SIGINT ask the loop to stop; a second one of the same kind ends it at once.

    With several processes SIGTERM belongs to JAX's coordination service, which tells the other hosts: a handler of our
    own would keep the notice to this host. SIGINT, which it does not know, is passed on to it.
    """

    def __init__(self) -> None:
        self._signal: str | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._alone = jax.process_count() == 1

    def __enter__(self) -> "PreemptionGuard":
        for number in (signal.SIGTERM, signal.SIGINT) if self._alone else (signal.SIGINT,):
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    def requested(self, step: int) -> str | None:
        """The reason to stop after ``step``, the same on every host, or None; to be asked after every step."""
        if self._alone:
            return self._signal
        # The service picks a step that all hosts will reach: the next after the farthest.
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(step) else None

    def _note(self, number: int, _: types.FrameType | None) -> None:
        number = signal.Signals(number)
        self._signal = number.name
        # Of this kind alone: a terminal's SIGINT often comes together with a launcher's SIGTERM.
        signal.signal(number, self._previous.pop(number))  # type: ignore[arg-type]
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous.clear()
