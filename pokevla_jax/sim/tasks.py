"""LIBERO's tasks as plain data: instruction, objects, files, step budget and stored initial states.

Everything is read from the files that hf-libero installs. Its own benchmark module is not used, because it imports
torch; the order of the tasks is the benchmark's (task order 0), the instruction is derived from the file name as there.
"""

import difflib
import functools
import importlib.util
import io
import pickle
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pokevla_jax.sim import bddl
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.upstream import libero_package
from pokevla_jax.typing import Float

# Steps of the controller, and so of a policy, a second.
CONTROL_HZ = 20
# Policy steps after the settling steps; openpi's and OpenVLA-OFT's table, a little above the longest demonstration.
MAX_STEPS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task; ``target`` is what the robot acts on and ``goal_object`` what it is brought to (they may coincide)."""

    suite: str
    index: int
    name: str
    language: str
    bddl_file: Path
    init_states_file: Path | None
    objects_of_interest: tuple[str, ...]
    target: str
    goal_object: str
    max_steps: int


def list_tasks(suite: str) -> tuple[TaskSpec, ...]:
    """All tasks of ``suite`` in benchmark order.

    Raises:
        SimulationError: for an unknown suite, naming the nearest one.
    """
    if suite not in MAX_STEPS:
        near = difflib.get_close_matches(suite, MAX_STEPS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"known suites: {', '.join(MAX_STEPS)}"
        raise SimulationError(f"Unknown suite {suite!r}; {hint}")
    return _list_tasks(suite)


@functools.cache
def _list_tasks(suite: str) -> tuple[TaskSpec, ...]:
    package = libero_package()
    tasks = []
    for index, name in enumerate(_task_map(package)[suite]):
        bddl_file = package / "bddl_files" / suite / f"{name}.bddl"
        objects = bddl.objects_of_interest(bddl_file)
        tasks.append(
            TaskSpec(
                suite=suite,
                index=index,
                name=name,
                language=language_of(name),
                bddl_file=bddl_file,
                init_states_file=package / "init_files" / suite / f"{name}.pruned_init",
                objects_of_interest=objects,
                target=objects[0],
                goal_object=objects[-1],
                max_steps=MAX_STEPS[suite],
            )
        )
    return tuple(tasks)


def load_task(suite: str, task: int | str) -> TaskSpec:
    """The task of ``suite`` with this index, or with this name.

    Raises:
        SimulationError: if there is none; for a name, says which is nearest.
    """
    tasks = list_tasks(suite)
    if isinstance(task, int):
        if not 0 <= task < len(tasks):
            raise SimulationError(f"{suite} has tasks 0 to {len(tasks) - 1}, not {task}")
        return tasks[task]
    by_name = {spec.name: spec for spec in tasks}
    if task not in by_name:
        near = difflib.get_close_matches(task.replace(" ", "_"), by_name, n=1, cutoff=0.0)
        raise SimulationError(f"Unknown task {task!r} of {suite}; did you mean {near[0]}?")
    return by_name[task]


def load_init_states(task: TaskSpec) -> Float[np.ndarray, "episodes d"]:
    """The stored initial simulator states: time, joint positions, joint velocities, one row per trial.

    The files are torch archives that hold one pickled numpy array; they are read without torch, and with an unpickler
    that can build nothing but a numpy array.

    Raises:
        SimulationError: if the task has no stored states, or the file is missing, truncated or not such an array.
    """
    path = task.init_states_file
    if path is None:
        raise SimulationError(f"Task {task.name!r} has no stored initial states; sample a layout instead")
    try:
        with zipfile.ZipFile(path) as archive:
            (entry,) = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            states = _NumpyUnpickler(io.BytesIO(archive.read(entry))).load()
    except FileNotFoundError as error:
        raise SimulationError(f"Initial states {path} are missing; reinstall hf-libero") from error
    except (zipfile.BadZipFile, pickle.UnpicklingError, ValueError, EOFError, KeyError, TypeError) as error:
        raise SimulationError(f"Initial states {path} cannot be read ({error}); reinstall hf-libero") from error
    states = np.atleast_2d(np.asarray(states))
    if states.ndim != 2 or states.dtype != np.float64 or not np.isfinite(states).all():
        raise SimulationError(f"Initial states {path} do not hold finite float64 rows; reinstall hf-libero")
    return states


class _NumpyUnpickler(pickle.Unpickler):
    """Builds numpy arrays only, so that a file from the network cannot run code."""

    ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("_codecs", "encode"): lambda text, encoding: text.encode(encoding),
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.ALLOWED[module, name]


def language_of(name: str) -> str:
    """The instruction in a task file's name; libero_10 and libero_90 put a scene in front (``KITCHEN_SCENE3_``)."""
    words = name.split("_")
    return " ".join(words[next((i + 1 for i, w in enumerate(words) if w.startswith("SCENE")), 0) :])


def _task_map(package: Path) -> dict[str, list[str]]:
    """Suite name -> task names, from hf-libero's list, which is loaded alone (its package would import torch)."""
    path = package / "benchmark" / "libero_suite_task_map.py"
    spec = importlib.util.spec_from_file_location("pokevla_libero_task_map", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.libero_task_map
