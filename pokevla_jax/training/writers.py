"""Where figures go besides ``metrics.jsonl``: TensorBoard's event files and, when asked for, Weights & Biases."""

import importlib
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from typing import Protocol

import jax
from etils import epath

# How long figures may wait where a file is written as a whole, as objects of a bucket are.
REMOTE_SECONDS = 30.0


class Writer(Protocol):
    """Takes the figures of a log step."""

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Records the figures of one step and split."""
        ...

    def close(self) -> None:
        """Makes sure that everything is written."""
        ...


def run_id(workdir: epath.PathLike) -> str:
    """The name of the run: its folder's, which a restart keeps."""
    return re.sub(r"[^\w.-]+", "-", epath.Path(workdir).name) or "run"


def open_writers(
    workdir: epath.Path, start_step: int, config: Mapping[str, Any], *, tensorboard: bool, wandb: str | None
) -> list[Writer]:
    """The writers that were asked for; none on hosts other than the first.

    Raises:
        ValueError: in one sentence, when Weights & Biases is asked for and not installed.
    """
    if jax.process_index():
        return []
    writers: list[Writer] = [TensorBoard(workdir, start_step)] if tensorboard else []
    return writers + ([WeightsAndBiases(workdir, config, wandb)] if wandb else [])


class TensorBoard:
    """Event files in ``tensorboard/``; TensorBoard hides what an interrupted attempt wrote after the restored step."""

    def __init__(self, workdir: epath.Path, start_step: int):
        self._folder, self._start_step = workdir / "tensorboard", start_step
        # The library writes to disks alone; for a bucket its file is copied, now and then.
        self._local = tempfile.TemporaryDirectory() if "://" in str(workdir) else None
        self._copied = time.monotonic()
        self._writer: Any = None

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Records scalars as ``split/name``."""
        if self._writer is None:
            from tensorboardX import SummaryWriter

            folder = self._local.name if self._local else str(self._folder)
            self._writer = SummaryWriter(folder, purge_step=self._start_step + 1)
        for name, value in values.items():
            self._writer.add_scalar(f"{split}/{name}", value, step)
        self._writer.flush()
        if time.monotonic() - self._copied > REMOTE_SECONDS:
            self._copy()

    def close(self) -> None:
        """Flushes and closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._copy()
        if self._local:
            self._local.cleanup()

    def _copy(self) -> None:
        self._copied = time.monotonic()
        if self._local:
            self._folder.mkdir(parents=True, exist_ok=True)
            for path in Path(self._local.name).iterdir():
                (self._folder / path.name).write_bytes(path.read_bytes())


class WeightsAndBiases:
    """One run per folder, continued after a restart; steps that it already has are not sent again."""

    def __init__(self, workdir: epath.Path, config: Mapping[str, Any], project: str):
        try:
            module = importlib.import_module("wandb")
        except ImportError as error:
            raise ValueError("--wandb needs the package wandb: pip install wandb, or drop the option") from error
        identity = run_id(workdir)
        self._run = module.init(project=project, id=identity, name=identity, config=dict(config), resume="allow")

    def write(self, step: int, split: str, values: Mapping[str, float]) -> None:
        """Sends scalars as ``split/name``."""
        if step >= self._run.starting_step:
            self._run.log({f"{split}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        """Ends this attempt of the run."""
        self._run.finish()
