"""A trace of chosen steps, for xprof or TensorBoard, into the run's ``profile`` folder."""

import tempfile
from pathlib import Path
from typing import Any

import jax
from etils import epath

PROFILE = "profile"


def parse_steps(text: str) -> tuple[int, int]:
    """First and last step of ``FIRST:LAST``.

    Raises:
        ValueError: in one sentence, for anything else.
    """
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 0 < int(first) <= int(last)):
        raise ValueError(f"--profile-steps takes FIRST:LAST, such as 10:15, got {text!r}")
    return int(first), int(last)


class Profiler:
    """Traces steps first to last on the first host."""

    def __init__(self, workdir: epath.Path, steps: tuple[int, int] | None):
        self._steps = steps if steps and jax.process_index() == 0 else None
        self._target = workdir / PROFILE
        self._folder: tempfile.TemporaryDirectory | None = None

    def before(self, step: int) -> None:
        """Starts the trace if it is time; a run that is continued after the first step begins where it is."""
        if self._steps and self._folder is None and self._steps[0] <= step <= self._steps[1]:
            # The profiler writes to local disks alone.
            self._folder = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._folder.name)

    def after(self, step: int, results: Any) -> None:
        """Ends the trace with the last step; ``results`` are waited for."""
        if self._folder is not None and self._steps and step >= self._steps[1]:
            jax.block_until_ready(results)
            self.close()

    def close(self) -> None:
        """Ends a trace in progress and puts it into the run's folder."""
        if self._folder is None:
            return
        jax.profiler.stop_trace()
        root = Path(self._folder.name)
        for path in sorted(root.rglob("*")):
            if path.is_file():
                target = self._target / path.relative_to(root).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
        self._folder.cleanup()
        self._folder, self._steps = None, None
