"""What a run writes down: JSON lines, and a progress bar or plain lines on the console."""

import json
import math
import os
import time
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import jax
from etils import epath
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import MofNCompleteColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeRemainingColumn

from pokevla_jax.config import OptimizerConfig
from pokevla_jax.training.guard import BAD
from pokevla_jax.training.workdir import write_atomically
from pokevla_jax.training.writers import REMOTE_SECONDS
from pokevla_jax.training.writers import Writer

METRICS = "metrics.jsonl"


class DivergedError(ValueError):
    """The loss or its gradient is no longer a number."""


class MetricsLog:
    """``metrics.jsonl``: one line per log step and split, each step once however often the run was restarted."""

    def __init__(self, workdir: epath.PathLike, start_step: int):
        """Opens the log for steps after ``start_step``; what an interrupted run wrote beyond it is dropped."""
        self._path = epath.Path(workdir) / METRICS
        # Objects of a bucket cannot be appended to: there the whole log is written anew, now and then.
        self._appends = "://" not in str(self._path)
        self._lines = [json.dumps(line) for line in read_metrics(workdir) if line["step"] <= start_step]
        self._enabled = jax.process_index() == 0
        self._unwritten = True
        self.flush()

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Appends one line."""
        if not self._enabled:
            return
        line = json.dumps({"step": step, "split": split, **{k: _rounded(v) for k, v in values.items()}})
        self._lines.append(line)
        if self._appends:
            with self._path.open("a") as file:
                file.write(f"{line}\n")
        else:
            self._unwritten = True
            if time.monotonic() - self._flushed > REMOTE_SECONDS:
                self.flush()

    def flush(self) -> None:
        """Makes sure that all lines are in the file; to be called before a save, which must not overtake them."""
        if self._enabled and self._unwritten:
            write_atomically(self._path, "".join(f"{line}\n" for line in self._lines))
            self._unwritten, self._flushed = False, time.monotonic()


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The lines of a run's ``metrics.jsonl``; a last line cut short by a kill is left out."""
    path = epath.Path(workdir) / METRICS
    lines = path.read_text().splitlines() if path.exists() else []
    parsed = []
    for line in lines:
        try:
            parsed.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return parsed


def _rounded(value: float) -> float | None:
    # JSON has no NaN; seven digits are what a float32 holds.
    return float(f"{value:.7g}") if math.isfinite(value) else None


class Chrono:
    """Seconds per step, with pauses (evaluation, saving) taken out."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._paused = 0.0
        self._waited = 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Does not count what happens inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - start

    def waited(self, seconds: float) -> None:
        """Adds time for which the device had nothing to do but wait for data."""
        self._waited += seconds

    def lap(self, steps: int, samples: int) -> dict[str, float]:
        """Means over the ``steps`` since the last lap, of ``samples`` each, and a new lap."""
        now = time.perf_counter()
        seconds = max((now - self._start - self._paused) / steps, 1e-9)
        result = {
            "step_seconds": seconds,
            "data_wait_seconds": self._waited / steps,
            "samples_per_second": samples / seconds,
        }
        self._start, self._paused, self._waited = now, 0.0, 0.0
        return result


class Window:
    """Scalars of the steps since the last log line; they stay on the device until one is due."""

    def __init__(self, config: OptimizerConfig) -> None:
        # How many bad steps in a row are one too many.
        self._limit = config.max_skipped if config.on_bad_step == "skip" else 1
        self._skips = config.on_bad_step == "skip"
        self._scalars: list[tuple[int, Any]] = []

    def add(self, step: int, scalars: Any) -> None:
        """Keeps the scalars of one step; nothing is transferred."""
        self._scalars.append((step, scalars))

    def __len__(self) -> int:
        return len(self._scalars)

    def check(self) -> None:
        """Waits for the steps kept so far.

        Raises:
            DivergedError: naming the first step that is bad, or one too many that was skipped.
        """
        self._scalars = [(step, jax.device_get(scalars)) for step, scalars in self._scalars]
        for step, scalars in self._scalars:
            if scalars[BAD] >= self._limit:
                raise DivergedError(self._reason(step, scalars))

    def _reason(self, step: int, scalars: Mapping[str, Any]) -> str:
        names = [name for name, value in scalars.items() if not math.isfinite(value)]
        what = f"{', '.join(names)} not finite" if names else _spike(scalars)
        if self._skips:
            what = f"{what}, number {self._limit} of bad steps in a row"
        advice = "go back to an earlier checkpoint with a lower config.optimizer.learning_rate or more warmup_steps"
        if not self._skips:
            advice += ', or skip such steps with config.optimizer.on_bad_step = "skip"'
        return f"Training diverged at step {step}: {what}; {advice}"

    def flush(self) -> dict[str, float]:
        """Means over the window's good steps, which is then empty; the learning rate is the last step's."""
        self.check()
        good = [scalars for _, scalars in self._scalars if not scalars[BAD]]
        names = [name for name in self._scalars[0][1] if name != BAD]
        means = {name: sum(float(s[name]) for s in good) / len(good) if good else math.nan for name in names}
        means["learning_rate"] = float(self._scalars[-1][1]["learning_rate"])
        if self._skips:
            means["skipped"] = float(len(self._scalars) - len(good))
        self._scalars = []
        return means


def _spike(scalars: Mapping[str, Any]) -> str:
    return f"loss {float(scalars['loss']):.4g} or grad_norm {float(scalars['grad_norm']):.4g} is a spike"


class Reporter:
    """The console: a progress bar on a terminal, a line per log step elsewhere; silent on all hosts but the first."""

    def __init__(self, num_steps: int, start_step: int, console: Console | None = None):
        self._console = Console(soft_wrap=True, highlight=False) if console is None else console
        self._console.quiet = self._console.quiet or jax.process_index() != 0
        self._num_steps = num_steps
        self._bar: Progress | None = None
        if self._console.is_terminal and not os.environ.get("CI"):
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("", total=num_steps, completed=start_step)
            self._bar.start()

    def say(self, text: str) -> None:
        """One line of prose."""
        self._console.print(text, markup=False)

    def advance(self, step: int) -> None:
        """Moves the bar."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """What a log step measured."""
        share = values["data_wait_seconds"] / values["step_seconds"]
        parts = " ".join(f"{name[5:]} {value:.4f}" for name, value in values.items() if name.startswith("loss/"))
        speed = f"{values['samples_per_second']:.1f} samples/s, {share:.0%} waiting for data"
        if "mfu" in values:
            speed += f", MFU {values['mfu']:.1%}"
        if values.get("skipped"):
            speed += f", {values['skipped']:.0f} steps skipped"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=f"loss {values['loss']:.4f}  {speed}")
        else:
            left = (self._num_steps - step) * values["step_seconds"]
            clock = f"{int(left // 60)}:{int(left % 60):02d} left"
            self.say(f"step {step}/{self._num_steps}  loss {values['loss']:.4f} ({parts})  {speed}  {clock}")

    def holdout(self, step: int, values: Mapping[str, float], *, best: bool) -> None:
        """What an evaluation on the held-out episodes measured."""
        measured = "  ".join(f"{name} {value:.4f}" for name, value in values.items())
        self.say(f"step {step}  held out: {measured}{'  (best so far)' if best else ''}")

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


class Log:
    """Everything that is written during the steps: the metrics' file, the writers and the console."""

    def __init__(self, workdir: epath.PathLike, start_step: int, reporter: Reporter, writers: Sequence[Writer] = ()):
        self._metrics, self._reporter, self._writers = MetricsLog(workdir, start_step), reporter, tuple(writers)

    def say(self, text: str) -> None:
        """One line of prose, on the console."""
        if text:
            self._reporter.say(text)

    def advance(self, step: int) -> None:
        """Moves the console's bar."""
        self._reporter.advance(step)

    def train(self, step: int, values: Mapping[str, float]) -> None:
        """What a log step measured."""
        self._write(step, "train", values)
        self._reporter.train(step, values)

    def holdout(self, step: int, values: Mapping[str, float], *, best: bool) -> None:
        """What an evaluation on the held-out samples measured."""
        self._write(step, "holdout", values)
        self._reporter.holdout(step, values, best=best)

    def _write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        self._metrics.write(step, split, values)
        for writer in self._writers:
            writer.write(step, split, values)

    def flush(self) -> None:
        """Makes sure that the metrics are in their file."""
        self._metrics.flush()

    def close(self) -> None:
        """Writes what is left."""
        self._metrics.flush()
        for writer in self._writers:
            writer.close()
