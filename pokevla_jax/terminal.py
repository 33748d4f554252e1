"""What a command says on the terminal when something is wrong: one sentence, and no traceback but a defect's."""

import argparse
import difflib
import errno
import os
import traceback
from pathlib import Path
from typing import Any
from typing import Literal
from typing import NoReturn

_PROJECT_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("pokevla_jax", "eval")
_ROOM = "make room there and run the same command again"
_PERMISSION = "choose a place that you may use, or change who may use this one"
_PATH = "check the path"
_ADVICE = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EACCES: _PERMISSION,
    errno.EPERM: _PERMISSION,
    errno.EROFS: _PERMISSION,
    errno.ENOENT: _PATH,
    errno.ENOTDIR: _PATH,
    errno.EISDIR: _PATH,
    errno.EEXIST: _PATH,
    errno.ENAMETOOLONG: _PATH,
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
"""What to do about what the operating system says of paths and disks; of networks it may say other things next time."""


class Parser(argparse.ArgumentParser):
    """A parser whose errors are one line and name the nearest option; an abbreviated option is no option."""

    def __init__(self, **options: Any):
        # An abbreviation would silently change its meaning when an option is added.
        defaults: dict[str, Any] = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter}
        super().__init__(**(defaults | options))

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """All of them: what a command of several does not know is answered by that command, which knows the nearest."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            near = difflib.get_close_matches(unknown[0].partition("=")[0], self._option_string_actions, n=1)
            self.error(f"unknown: {' '.join(unknown)}" + (f"; did you mean {near[0]}?" if near else ""))
        return found, unknown

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def add_step(parser: argparse._ActionsContainer, which: str = "which checkpoint") -> None:
    """Adds ``--step``: a number, ``best``, or None for the newest."""
    parser.add_argument("--step", type=_checkpoint_step, metavar="N|best", help=f"{which} (default: the newest)")


def _checkpoint_step(text: str) -> int | Literal["best"]:
    if text == "best":
        return "best"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor best")
    return int(text)


def add_assets(parser: argparse._ActionsContainer) -> None:
    """Adds ``--assets``: a folder, or None for what the environment says."""
    where = "LIBERO's asset folder (default: LIBERO_ASSETS, else what is installed or downloaded)"
    parser.add_argument("--assets", type=Path, metavar="DIR", help=where)


def sentence(error: ValueError | OSError) -> str | None:
    """What ``error`` tells the user, on one line.

    None where it does not speak to the user: it came out of a library, which is a defect whose traceback is wanted.
    With ``POKEVLA_TRACEBACK`` set every traceback is.
    """
    if os.environ.get("POKEVLA_TRACEBACK"):
        return None
    if isinstance(error, OSError) and error.errno in _ADVICE:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{error.strerror}; {_ADVICE[error.errno]}"
    return " ".join(str(error).split("\n")) if _is_ours(error) else None


def _is_ours(error: BaseException) -> bool:
    """Whether ``error`` is of this project's kinds, or was raised by its code rather than by an installed library."""
    if type(error).__module__.partition(".")[0] in _PACKAGES:
        return True
    path = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return path.is_relative_to(_PROJECT_ROOT) and not {"site-packages", "dist-packages"} & set(
        path.relative_to(_PROJECT_ROOT).parts
    )
