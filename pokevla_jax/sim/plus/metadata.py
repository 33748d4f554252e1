"""LIBERO-Plus's metadata: its tasks with category and level, their BDDL files and initial states.

The metadata is the benchmark's public repository, or what its folder ``libero/libero`` holds of it::

    benchmark/task_classification.json    every task of the four suites: name, category, difficulty level
    bddl_files/SUITE/NAME.bddl
    init_files/libero_newobj/SUITE/NAME.pruned_init

Tasks are read from the classification file, in its order: the folders hold thousands of files that no task uses.
"""

import functools
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pokevla_jax.sim.errors import AssetError
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.plus.names import CATEGORIES
from pokevla_jax.sim.plus.names import Perturbation
from pokevla_jax.sim.plus.names import parse_name
from pokevla_jax.sim.tasks import TaskSpec
from pokevla_jax.sim.tasks import list_tasks

SUITES = ("libero_spatial", "libero_object", "libero_goal", "libero_10")
VARIABLE = "LIBERO_PLUS"
CLASSIFICATION = Path("benchmark", "task_classification.json")
RELEASE = {
    "sha256": "0b6a3e7680a68c747cf7f18f582efe19d5a276a813407794f939ae2e7b050aa1",
    "commit": "4976dc3",
    "episodes": 10030,
}
"""The public repository's state that the code was checked against."""

_SHORT = {name: short for short, name in CATEGORIES.items()}


@dataclass(frozen=True)
class PlusTask:
    """One of the benchmark's tasks; each is run once.

    Attributes:
        suite: LIBERO suite.
        number: the benchmark's own, counted from 1.
        name: the benchmark's name, which says everything about the perturbation.
        level: difficulty 1 to 5; None where the benchmark gives none.
        base: index of the unperturbed task in its LIBERO suite.
    """

    suite: str
    number: int
    name: str
    level: int | None
    base: int
    perturbation: Perturbation

    @property
    def base_task(self) -> TaskSpec:
        """The unperturbed LIBERO task."""
        return list_tasks(self.suite)[self.base]


@dataclass(frozen=True)
class Metadata:
    """A complete metadata folder.

    It travels to another host as ``source``: there it is opened, or unpacked, anew.

    Attributes:
        root: the folder.
        source: what was opened: the folder, a clone around it, or an archive of it.
    """

    root: Path
    source: Path

    def __reduce__(self) -> tuple[Callable[[Path], "Metadata"], tuple[Path]]:
        return open_metadata, (self.source,)

    def bddl_file(self, task: PlusTask) -> Path:
        """The file that describes the task's scene, goal and instruction."""
        return self.root / "bddl_files" / task.suite / f"{task.name.partition('_view_')[0]}.bddl"

    def init_states_file(self, task: PlusTask) -> Path | None:
        """Where the initial state of a layout is; None for the other tasks, which start from LIBERO's first one."""
        if task.perturbation.category != "layout":
            return task.base_task.init_states_file
        return self.root / "init_files" / "libero_newobj" / task.suite / f"{task.name}.pruned_init"

    def tasks(self, suite: str) -> tuple[PlusTask, ...]:
        """The suite's tasks in the benchmark's order.

        Raises:
            SimulationError: for an unknown suite, or a classification file that does not describe one.
        """
        if suite not in SUITES:
            list_tasks(suite)  # a misspelt suite is answered with the nearest
            raise SimulationError(f"LIBERO-Plus has no tasks of {suite}; its suites are {', '.join(SUITES)}")
        return _read_tasks(self.root / CLASSIFICATION, suite)

    def task(self, suite: str, name: str) -> PlusTask:
        """The task with this name.

        Raises:
            SimulationError: if there is none.
        """
        try:
            return _by_name(self.tasks(suite))[name]
        except KeyError as error:
            raise SimulationError(f"LIBERO-Plus's {suite} has no task {name!r}") from error

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of all that decides an episode: the classification and every file that a task refers to (0.5 s).

        Raises:
            AssetError: if one of the files is missing, naming it.
        """
        files = {CLASSIFICATION}
        for task in (task for suite in SUITES for task in self.tasks(suite)):
            if task.perturbation.own_scene or task.perturbation.language:
                files.add(self.bddl_file(task).relative_to(self.root))
            if (states := self.init_states_file(task)) is not None and states.is_relative_to(self.root):
                files.add(states.relative_to(self.root))
        total = hashlib.sha256()
        for name in sorted(files, key=str):
            try:
                content = (self.root / name).read_bytes()
            except OSError as error:
                raise AssetError(f"LIBERO-Plus's metadata {self.root} lacks {name} ({error.strerror})") from error
            total.update(f"{name.as_posix()} {hashlib.sha256(content).hexdigest()}\n".encode())
        return total.hexdigest()

    @property
    def is_release(self) -> bool:
        """Whether it is the benchmark's published metadata, unchanged."""
        return self.sha256 == RELEASE["sha256"]


def open_metadata(path: str | Path | None = None) -> Metadata:
    """The metadata at ``path``, or where the environment variable ``LIBERO_PLUS`` says.

    Args:
        path: a folder, or an archive (tar, also compressed), which is unpacked into the cache folder at first use.

    Raises:
        AssetError: if there is none, saying what is looked for.
    """
    given = path or os.environ.get(VARIABLE)
    if not given:
        raise AssetError(
            f"LIBERO-Plus needs its metadata: give --plus or {VARIABLE} a clone of its repository, the folder "
            f"libero/libero of one, or a tar of {CLASSIFICATION.as_posix()}, bddl_files and init_files"
        )
    root = Path(given)
    if root.is_file():
        from pokevla_jax.sim.plus.unpack import unpack

        root = unpack(root)
    for folder in (root, root / "libero" / "libero"):
        if (folder / CLASSIFICATION).is_file():
            return Metadata(folder.resolve(), Path(given).resolve())
    raise AssetError(f"{given} is no LIBERO-Plus metadata: it holds no {CLASSIFICATION.as_posix()}")


@functools.cache
def _by_name(tasks: tuple[PlusTask, ...]) -> dict[str, PlusTask]:
    return {task.name: task for task in tasks}


@functools.cache
def _read_tasks(path: Path, suite: str) -> tuple[PlusTask, ...]:
    base_names = [task.name for task in list_tasks(suite)]
    try:
        entries: list[dict[str, Any]] = json.loads(path.read_text())[suite]
        tasks = []
        for number, entry in enumerate(entries, start=1):
            base, perturbation = parse_name(entry["name"], base_names)
            level = entry["difficulty_level"]
            if entry["id"] != number or _SHORT[entry["category"]] != perturbation.category:
                raise SimulationError(f"{path}: entry {number} of {suite} contradicts its name {entry['name']!r}")
            if level is not None and level not in range(1, 6):
                raise SimulationError(f"{path}: entry {number} of {suite} has level {level!r}, expected 1 to 5 or null")
            tasks.append(PlusTask(suite, number, entry["name"], level, base, perturbation))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise SimulationError(f"{path} is no LIBERO-Plus classification ({error!r}); restore the file") from error
    return tuple(tasks)
