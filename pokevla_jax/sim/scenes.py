"""Which compiled scene a layout needs, and which of its objects stand in it.

LIBERO gives every instruction its own set of objects. The *shared* scene holds all ten objects of libero_object and the
basket, compiled once; a layout shows some of them and parks the rest out of every camera's sight, and the task (the
instruction, the goal predicate, the objects of interest) follows the target.
"""

import dataclasses
import os
import tempfile
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.simplify import cache_folder
from pokevla_jax.sim.tasks import MAX_STEPS
from pokevla_jax.sim.tasks import TaskSpec
from pokevla_jax.sim.tasks import list_tasks
from pokevla_jax.sim.tasks import load_task

KINDS = ("stored", "moved", "shared")
SHARED_SUITE = "libero_object"
BASKET = "basket_1"
# Behind the scene's rear wall (x = -2 m), away from each other.
_PARKING_X, _PARKING_STEP = -4.0, 0.5
# robosuite draws geom group 1; layouts move the visual parts of what is parked to a group nobody draws.
_VISIBLE_GROUP, _HIDDEN_GROUP = 1, 5


def make_environment(suite: str, task: int | str, kind: str = "stored", **options: Any) -> LiberoEnvironment:
    """The environment in which layouts of ``kind`` for this task are played; ``options`` are ``LiberoEnvironment``'s.

    One environment of kind "shared" serves all ten tasks: ``apply_layout`` sets its task.

    Raises:
        SimulationError: for an unknown suite, task or kind.
    """
    check_kind(kind, suite)
    spec = load_task(suite, task)
    if kind != "shared":
        return LiberoEnvironment(spec, **options)
    environment = LiberoEnvironment(shared_task(spec.index), **options)
    # The generated task file states the goal of one task; all ten share it.
    environment.set_task(environment.task)
    return environment


def check_kind(kind: str, suite: str) -> None:
    """Raises ``SimulationError`` for a kind of layout that does not exist, or not for this suite."""
    if kind not in KINDS:
        raise SimulationError(f"Unknown layout kind {kind!r}; known kinds: {', '.join(KINDS)}")
    if suite in MAX_STEPS and suite not in layout_suites(kind):
        only = ", ".join(layout_suites(kind))
        raise SimulationError(f"Layouts of kind {kind!r} exist for {only} only, not {suite}; use kind 'stored'")


def layout_suites(kind: str) -> tuple[str, ...]:
    """The suites that have layouts of ``kind``: stored ones all, sampled ones those that the scripted expert plays."""
    return tuple(MAX_STEPS) if kind == "stored" else (SHARED_SUITE,)


def shared_objects() -> tuple[str, ...]:
    """Names of the objects that a shared scene may show, in task order: object i is the target of task i."""
    return tuple(task.target for task in list_tasks(SHARED_SUITE))


def shared_task(index: int) -> TaskSpec:
    """Task ``index`` of libero_object, played in the shared scene; it has no stored initial states."""
    task = load_task(SHARED_SUITE, index)
    return dataclasses.replace(
        task, bddl_file=_shared_bddl(), init_states_file=None, objects_of_interest=(task.target, BASKET)
    )


def show(environment: LiberoEnvironment, names: Collection[str]) -> None:
    """Hides all movable objects but ``names`` from the renderer and holds their weight, so that they cost nothing.

    A parked object touches nothing and keeps still without contacts. A reset lets go of it: call this after each.
    """
    model, data = environment.model, environment.data
    for name, body in environment.sim_env.obj_body_id.items():
        present = name in names
        data.xfrc_applied[body, :3] = 0.0 if present else -model.body_mass[body] * model.opt.gravity
        visual = (model.geom_bodyid == body) & np.isin(model.geom_group, (_VISIBLE_GROUP, _HIDDEN_GROUP))
        model.geom_group[visual] = _VISIBLE_GROUP if present else _HIDDEN_GROUP


def parking_position(environment: LiberoEnvironment, name: str) -> tuple[float, float, float]:
    """Where the object waits while it is not part of the scene."""
    order = list(environment.sim_env.obj_body_id).index(name)
    return (_PARKING_X, _PARKING_STEP * (order - 5), 0.5)


def _shared_bddl() -> Path:
    """The generated task file of the shared scene, in the cache folder."""
    objects = (*shared_objects(), BASKET)
    categories = "\n".join(f"    {name} - {name.rsplit('_', 1)[0]}" for name in objects)
    # A grid wide enough for the placement sampler, which runs on every reset; layouts move everything afterwards.
    corners = [(round(-0.4 + 0.2 * (i % 4), 2), round(-0.4 + 0.3 * (i // 4), 2)) for i in range(len(objects))]
    regions = "\n".join(
        f"    ({name}_start (:target floor) (:ranges (({x} {y} {x + 0.01:.2f} {y + 0.01:.2f}))))"
        for name, (x, y) in zip(objects, corners, strict=True)
    )
    placed = "\n".join(f"    (On {name} floor_{name}_start)" for name in objects)
    text = f"""(define (problem LIBERO_Floor_Manipulation)
  (:domain robosuite)
  (:language put an object in the basket)
  (:regions
{regions}
    (contain_region (:target {BASKET}))
  )
  (:fixtures floor - floor)
  (:objects
{categories}
  )
  (:obj_of_interest {objects[0]} {BASKET})
  (:init
{placed}
  )
  (:goal (And (In {objects[0]} {BASKET}_contain_region)))
)
"""
    path = cache_folder() / "scenes" / "libero_object_shared.bddl"
    if not path.exists() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        with os.fdopen(handle, "w") as stream:
            stream.write(text)
        os.replace(partial, path)
    return path
