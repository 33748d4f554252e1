"""One writer per run folder: a lock of the file system, and a heartbeat for hosts that the lock does not reach.

``flock`` holds between the processes of a host, and on most NFS servers between hosts; on other shared disks it may
hold on one host only, or not at all. So the lock file also names its owner and is touched every ``BEAT`` seconds:
another host waits until it has not been touched for ``STALE`` seconds.
"""

import contextlib
import fcntl
import json
import os
import platform
import tempfile
import threading
from pathlib import Path
from typing import Any

from eval.errors import EvaluationError

BEAT = 15.0
STALE = 90.0


class FolderLock:
    """Held from ``acquire`` to ``release``, and freed by the kernel if the process dies."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._file = -1
        self._mine = b""
        self._stop = threading.Event()

    def acquire(self) -> None:
        """Takes the folder.

        Raises:
            OSError: when the lock file cannot be written.
            EvaluationError: when another process or host holds it.
        """
        self._file = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        locked = True
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise self._refusal(self._owner()) from error
        except OSError:  # a file system without locks
            locked = False
        owner = self._owner()
        if owner is not None and self._lives(owner, locked):
            raise self._refusal(owner)
        self._mine = json.dumps({"host": platform.node(), "pid": os.getpid()}).encode()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, self._mine, 0)
        self._stop.clear()
        threading.Thread(target=self._beat, args=(self._file,), daemon=True).start()

    def check(self) -> None:
        """Raises ``EvaluationError`` when another host has taken the folder meanwhile: two must not write."""
        if os.pread(self._file, 4096, 0) != self._mine:
            raise EvaluationError(f"{self._folder} was taken over by {_name(self._owner())}; this evaluation ends")

    def release(self) -> None:
        """Gives the folder back."""
        self._stop.set()
        if self._file < 0:
            return
        if self._mine and os.pread(self._file, 4096, 0) == self._mine:
            os.ftruncate(self._file, 0)
        os.close(self._file)
        self._file, self._mine = -1, b""

    def _beat(self, file: int) -> None:
        """Touches the file until the lock is released or its folder is gone."""
        with contextlib.suppress(OSError):
            while not self._stop.wait(BEAT):
                os.utime(file)

    def _owner(self) -> dict[str, Any] | None:
        try:
            owner = json.loads(os.pread(self._file, 4096, 0))
            return {"host": str(owner["host"]), "pid": int(owner["pid"])}
        except (ValueError, KeyError, TypeError):
            return None

    def _lives(self, owner: dict[str, Any], locked: bool) -> bool:
        """Whether the named owner may still write; on this host a lock that we got says that it does not."""
        if owner["host"] == platform.node():
            return not locked and Path(f"/proc/{owner['pid']}").exists()
        # By the clock of the disk: those of two hosts may differ.
        with tempfile.NamedTemporaryFile(dir=self._folder, prefix=".clock") as probe:
            age = os.fstat(probe.fileno()).st_mtime - os.fstat(self._file).st_mtime
        return age < STALE

    def _refusal(self, owner: dict[str, Any] | None) -> EvaluationError:
        os.close(self._file)
        self._file = -1
        where = f" ({_name(owner)})" if owner else ""
        patience = f"; if it died, wait {STALE:.0f} s" if owner and owner["host"] != platform.node() else ""
        return EvaluationError(
            f"{self._folder} is being written by another evaluation{where}; wait for it to end{patience}"
        )


def _name(owner: dict[str, Any] | None) -> str:
    return f"process {owner['pid']} on {owner['host']}" if owner else "another evaluation"
