"""The run's folder: writable, of this configuration, large enough, and no one else's; checked before any work."""

import contextlib
import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from collections.abc import Mapping
from typing import Any

import jax
from etils import epath

from pokevla_jax import checkpoints
from pokevla_jax import config as config_lib
from pokevla_jax.config import CheckpointConfig
from pokevla_jax.config import Config
from pokevla_jax.training.banner import FIRST_BATCH

CONFIG = "config.json"
LOCK = ".lock"

# What may change between restarts of one run: none of it alters what is computed, up to the order of summation,
# but for how bad steps are met: a run that stopped at one is continued by skipping it.
FREE_KEYS = (
    "mesh", "checkpoint", "log_every", "eval_every", "eval_batches", "data.path", "data.num_workers", "data.prefetch",
    "optimizer.on_bad_step", "optimizer.spike", "optimizer.max_skipped",
)  # fmt: skip


class WorkdirError(ValueError):
    """A run's folder that cannot be used; the message says why and what to do."""


def create(path: epath.PathLike) -> epath.Path:
    """The run's folder, created and tried.

    Raises:
        WorkdirError: in one sentence, when it cannot be written.
    """
    workdir = epath.Path(path)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        # Every host writes checkpoints, so every host tries.
        probe = workdir / f".writable-{jax.process_index()}"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise WorkdirError(
            f"--workdir {path} cannot be written ({error.strerror or error}); give another folder"
        ) from error
    return workdir


@contextlib.contextmanager
def held(path: epath.PathLike) -> Iterator[epath.Path]:
    """The run's folder, created, and on a disk kept from other trainings while the context lasts.

    A hold dies with its process. A folder that was made here goes again where a run fails before its first batch:
    nobody has to remove what a mistyped option left.

    Raises:
        WorkdirError: in one sentence, when it cannot be written or another process is training there.
    """
    existed = epath.Path(path).exists()
    workdir = create(path)
    if "://" in str(workdir) or jax.process_index() != 0:
        yield workdir
        return
    with contextlib.ExitStack() as stack:
        lock = os.open(workdir / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        stack.callback(os.close, lock)
        try:
            # A lock of this process and not of the open file, which loader workers share: they may outlive it a little.
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            # Anything else is a file system without locks.
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise WorkdirError(
                    f"--workdir {workdir} is being written by another training; wait for it to end, or give another "
                    "folder"
                ) from error
        try:
            yield workdir
        except BaseException:
            began = (workdir / FIRST_BATCH).exists() or checkpoints.all_steps(workdir / checkpoints.CHECKPOINTS)
            if not existed and not began:
                workdir.rmtree(missing_ok=True)
            raise


def claim(workdir: epath.Path, config: Config) -> None:
    """Writes ``config.json``, unless the folder holds checkpoints of another configuration.

    Raises:
        WorkdirError: in one sentence, naming the first key that differs.
    """
    stored, values = workdir / CONFIG, config_lib.to_dict(config)
    # A run that never saved is not worth protecting: its first start may have failed by a mistake just corrected.
    if stored.exists() and checkpoints.all_steps(workdir / checkpoints.CHECKPOINTS):
        try:
            before = dict(json.loads(stored.read_text()))
        except (ValueError, TypeError) as error:
            raise WorkdirError(
                f"{stored} is no configuration ({error}); restore it, or give another --workdir"
            ) from error
        changed = [key for key in _differences(before, values) if not key.startswith(FREE_KEYS)]
        if changed:
            old, new = (_lookup(tree, changed[0]) for tree in (before, values))
            more = f" (and {len(changed) - 1} more)" if len(changed) > 1 else ""
            raise WorkdirError(
                f"--workdir {workdir} holds a run with config.{changed[0]} = {old!r}, not {new!r}{more}; give another "
                "folder, or the configuration that it was started with"
            )
    if jax.process_index() == 0:
        write_atomically(stored, json.dumps(values, indent=2) + "\n")


def write_atomically(path: epath.Path, text: str) -> None:
    """Replaces a file so that a kill leaves either the old or the new content."""
    temporary = path.parent / f"{path.name}.tmp"
    temporary.write_text(text)
    temporary.replace(path)


def check_space(workdir: epath.Path, checkpoint_bytes: int, config: CheckpointConfig, num_steps: int) -> None:
    """Raises ``WorkdirError`` when a local disk cannot hold the checkpoints that are kept, before the first step."""
    if "://" in str(workdir):
        return
    # The last ones, the best, and one more: a new checkpoint is complete before the oldest goes.
    most = config.keep_last + 2 + (num_steps // config.keep_every if config.keep_every else 0)
    most = min(most, num_steps // config.every_steps + 3)
    missing = max(most - len(checkpoints.all_steps(workdir / checkpoints.CHECKPOINTS)), 1)
    needed, free = checkpoint_bytes * missing, shutil.disk_usage(workdir).free
    if free < needed:
        raise WorkdirError(
            f"{workdir} has {free / 2**30:.1f} GiB free, and {missing} more checkpoints of "
            f"{checkpoint_bytes / 2**30:.2f} GiB need {needed / 2**30:.1f} GiB; free some space, or keep fewer "
            "(config.checkpoint.keep_last, keep_every)"
        )


def _differences(a: Mapping[str, Any], b: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys whose values differ or that only one side has."""
    for key in {**a, **b}:
        x, y = a.get(key), b.get(key)
        if isinstance(x, Mapping) and isinstance(y, Mapping):
            yield from _differences(x, y, f"{prefix}{key}.")
        elif x != y:
            yield f"{prefix}{key}"


def _lookup(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree
