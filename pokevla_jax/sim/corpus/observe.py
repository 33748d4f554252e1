"""Reads the facts of a frame off a simulator: names, boxes, contacts, states, goals, and labelled pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from typing import Literal

import mujoco
import numpy as np

from pokevla_jax.sim.corpus import kinds
from pokevla_jax.sim.corpus.facts import Frame
from pokevla_jax.sim.corpus.facts import Goal
from pokevla_jax.sim.corpus.facts import Outcome
from pokevla_jax.sim.corpus.facts import Thing
from pokevla_jax.sim.corpus.facts import View
from pokevla_jax.sim.environment import VIEWS
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.geometry import box_corners
from pokevla_jax.sim.geometry import descendants
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.typing import Float

# Regions of the table whose place words can tell, since what they are named after never moves.
_TABLE_REGIONS = {"main_table_stove_front_region": "in front of the stove"}
_SITE_PLACES = {"top_side": ("on top of", None), "back_contain_region": ("in", "back compartment of the caddy")}
_ROBOT = 1
# A rim is this uppermost part of a dish's height.
_RIM_SLICE = 0.12


@dataclass(frozen=True)
class _Body:
    """One thing of the compiled scene: its parts of the kinematic tree, and how its pixels are labelled."""

    name: str
    kind: Literal["object", "fixture", "part"]
    words: kinds.Kind
    bodies: frozenset[int]
    labels: frozenset[int]
    grip_labels: frozenset[int] = frozenset()
    part: kinds.PartKind | None = None
    joint: int = -1
    opens: bool = False


class Observer:
    """What a compiled scene holds; ``frame`` says how it stands now. Leaves the scene in its first stored state.

    Args:
        environment: the scene.
        workspace: part of the table that is used, low and high (x, y) in the robot's base frame.

    Raises:
        SimulationError: for an object that has no word in ``kinds``.
    """

    def __init__(self, environment: LiberoEnvironment, workspace: Float[np.ndarray, "2 2"]):
        self._environment = environment
        self.workspace = workspace
        self._base = environment.base_from_world()
        model = environment.model
        self._geom_labels = np.zeros(model.ngeom, np.uint8)
        robot = [i for i in range(model.nbody) if model.body(i).name.startswith(("robot0_", "gripper0_", "mount0_"))]
        self._geom_labels[np.isin(model.geom_bodyid, robot)] = _ROBOT
        self._next = _ROBOT + 1
        self.bodies: dict[str, _Body] = {}
        self._geom_ids: dict[tuple[str, int], np.ndarray] = {}
        for name, root in environment.sim_env.obj_body_id.items():
            self._add(name, root)
        # A part stands after its fixture, so that it owns its bodies.
        self._owner = {body: thing.name for thing in self.bodies.values() for body in thing.bodies}
        environment.reset(load_init_states(environment.task)[0])
        boxes = [self.box(name) for name, body in self.bodies.items() if body.kind == "object"]
        # The lowest object stands on the table, once at rest; the scene classes' own numbers are centimetres off.
        self.surface = min(float(center[2] - half[2]) for center, half in boxes)

    def _add(self, name: str, root: int) -> None:
        words, everything = kinds.kind_of(name), descendants(self._environment.model, [root])
        is_object = name in self._environment.sim_env.objects_dict
        labels = {self._label(everything)}
        parts = []
        for part in kinds.PARTS.get(kinds.category(name), ()):
            found = self._part(name, words, part)
            labels |= found.labels
            parts.append(found)
        kind: Literal["object", "fixture"] = "object" if is_object else "fixture"
        opens = any(part.opens for part in parts)
        self.bodies[name] = _Body(name, kind, words, everything, frozenset(labels), opens=opens)
        self.bodies |= {part.name: part for part in parts}

    def _part(self, fixture: str, words: kinds.Kind, part: kinds.PartKind) -> _Body:
        model = self._environment.model
        bodies = descendants(model, [model.body(f"{fixture}_{part.body}").id])
        label, grip = self._label(bodies), self._label(bodies, grip=True)
        receives: Literal["in"] | None = "in" if part.noun.endswith("drawer") else None
        # "The stove is on", though its knob is what turns.
        group = part.noun if part.verb == "open" else words.noun
        return _Body(
            f"{fixture}/{part.body}",
            "part",
            kinds.Kind(part.noun, group, None, receives),
            bodies,
            frozenset({label, grip}),
            frozenset({grip}),
            part,
            model.jnt_qposadr[model.joint(f"{fixture}_{part.joint}").id],
            part.verb == "open",
        )

    def _label(self, bodies: frozenset[int], *, grip: bool = False) -> int:
        """A new label for the geoms of these bodies, or only for those made for a gripper."""
        model = self._environment.model
        geoms = np.flatnonzero(np.isin(model.geom_bodyid, list(bodies)))
        if grip:
            geoms = geoms[[self._is_grip(int(geom)) for geom in geoms]]
        self._geom_labels[geoms] = label = self._next
        self._next += 1
        return label

    def _is_grip(self, geom: int) -> bool:
        """Whether a geom of a moving part is its handle: by its mesh's name, a bar, or all of a knob."""
        model = self._environment.model
        if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_CAPSULE:
            return True
        body = model.body(model.geom_bodyid[geom]).name
        mesh = model.geom_dataid[geom]
        named = mesh >= 0 and "handle" in model.mesh(mesh).name
        return named or body.endswith("_button")

    # --- now ---

    def frame(
        self, id_: str, layout: int, *, views: Sequence[str] = VIEWS, outcomes: tuple[Outcome, ...] = ()
    ) -> Frame:
        """The present state, rendered."""
        environment = self._environment
        things = self.things()
        robot = environment.sim_env.robots[0]
        fingers = np.abs(environment.data.qpos[robot._ref_gripper_joint_pos_indexes]).sum()
        goals = self.goals(things)
        return Frame(
            id=id_,
            suite=environment.task.suite,
            task=environment.task.index,
            layout=layout,
            views={view: self._view(view) for view in views},
            things=things,
            gripper=self._to_base(environment.data.site_xpos[robot.eef_site_id]),
            opening=float(np.clip(fingers / 0.08, 0.0, 1.0)),
            surface=self.surface,
            workspace=self.workspace,
            task_text=self._task_text(goals),
            goals=goals,
            held=self.held(),
            outcomes=outcomes,
        )

    def _view(self, view: str) -> View:
        seen = self._environment.render(view, depth=True, labels=self._geom_labels)
        camera = self._environment.camera(view)
        assert seen.rgb is not None and seen.mask is not None and seen.depth is not None
        return View(seen.rgb, seen.mask, seen.depth, camera.intrinsics, camera.base_from_camera)

    def _to_base(self, places: Float[np.ndarray, "*n 3"]) -> Float[np.ndarray, "*n 3"]:
        return places @ self._base[:3, :3].T + self._base[:3, 3]

    def things(self) -> dict[str, Thing]:
        """Everything that has a name, without pictures."""
        boxes = {name: self.box(name) for name in self.bodies}
        touching = self._touching()
        return {name: self._thing(body, boxes, touching) for name, body in self.bodies.items()}

    def _thing(self, body: _Body, boxes: dict[str, tuple[np.ndarray, np.ndarray]], touching: set) -> Thing:
        center, half = boxes[body.name]
        state: Any = None
        if body.part is not None:
            state = _state(body.part, float(self._environment.data.qpos[body.joint]))
        inside = None
        if body.kind == "object":
            holders = [name for name in self.bodies if (body.name, name) in touching and self._lies(body, name, boxes)]
            inside = min(holders, key=lambda name: boxes[name][1].prod(), default=None)
        return Thing(
            name=body.name,
            noun=body.words.noun,
            plain=body.words.group if body.part is not None else body.words.plain,
            group=body.words.group,
            kind=body.kind,
            labels=body.labels,
            center=center,
            half=half,
            grip_labels=body.grip_labels,
            grasp=body.words.grasp if body.kind == "object" else None,
            receives=body.words.receives,
            opens=body.opens,
            grip_width=2.0 * self._grip_half_width(body) if body.kind == "object" else 0.0,
            state=state,
            inside=inside,
            rim=self._rim(body) if body.words.grasp in ("rim", "handle") else None,
        )

    def _lies(self, body: _Body, name: str, boxes: dict[str, tuple[np.ndarray, np.ndarray]]) -> bool:
        """Whether an object that touches ``name`` is in or on it."""
        receives = self.bodies[name].words.receives
        (center, half), (place, extent) = boxes[body.name], boxes[name]
        if receives is None or (np.abs(center - place)[:2] > extent[:2]).any():
            return False
        bottom, top = center[2] - half[2], place[2] + extent[2]
        if receives == "in":
            return bool(bottom < top and center[2] < top + 0.03)
        # On a thing: its lower end near that one's top, or, for a dish, above its middle.
        return bool(bottom > (top - 0.03 if self.bodies[name].kind == "fixture" else place[2] - extent[2]))

    def _geoms(self, body: _Body, group: int) -> np.ndarray:
        """Ids of a thing's geoms: group 0 collides, group 1 is drawn."""
        key = (body.name, group)
        if key not in self._geom_ids:
            model = self._environment.model
            mine = np.isin(model.geom_bodyid, list(body.bodies)) & (model.geom_group == group)
            self._geom_ids[key] = np.flatnonzero(mine)
        return self._geom_ids[key]

    def box(self, name: str) -> tuple[Float[np.ndarray, "3"], Float[np.ndarray, "3"]]:
        """Centre and half sides of the box around what can collide of a thing, along the base frame's axes."""
        model, data = self._environment.model, self._environment.data
        geoms = self._geoms(self.bodies[name], 0)
        rotation = data.geom_xmat[geoms].reshape(-1, 3, 3)
        centers = data.geom_xpos[geoms] + np.einsum("gij,gj->gi", rotation, model.geom_aabb[geoms, :3])
        halves = np.einsum("gij,gj->gi", np.abs(rotation), model.geom_aabb[geoms, 3:])
        low, high = (centers - halves).min(0), (centers + halves).max(0)
        # The base is not turned against the world.
        return self._to_base(0.5 * (low + high)), 0.5 * (high - low)

    def _grip_half_width(self, body: _Body) -> float:
        """The smaller of an object's two half widths across its own upright axes."""
        model, data = self._environment.model, self._environment.data
        (root,) = [b for b in body.bodies if model.body_parentid[b] not in body.bodies]
        rotation = data.xmat[root].reshape(3, 3)
        corners = [
            box_corners(model, geom, data.geom_xpos[geom], data.geom_xmat[geom].reshape(3, 3))
            for geom in self._geoms(body, 0)
        ]
        own = (np.concatenate(corners) - data.xpos[root]) @ rotation
        half = 0.5 * np.ptp(own, axis=0)
        lying = np.abs(rotation[2]) < 0.6
        return float(half[lying].min()) if lying.any() else float(half.min())

    def _rim(self, body: _Body) -> tuple[float, float, float] | None:
        """Centre and radius of the circle around an upright dish's upper end; None where it is tilted."""
        model, data = self._environment.model, self._environment.data
        places = []
        for geom in self._geoms(body, 1):
            mesh = model.geom_dataid[geom]
            if mesh >= 0:
                start, count = model.mesh_vertadr[mesh], model.mesh_vertnum[mesh]
                vertices = model.mesh_vert[start : start + count].astype(np.float64)
                places.append(vertices @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
        if not places:
            return None
        points = self._to_base(np.concatenate(places))
        top = points[points[:, 2] > points[:, 2].max() - _RIM_SLICE * np.ptp(points[:, 2]), :2]
        half = 0.5 * np.ptp(top, axis=0)
        # A circle, as wide as it is long and nearly as wide as the body below; of a tilted dish one side is that high.
        if half.min() < 0.85 * half.max() or half.max() < 0.8 * 0.5 * np.ptp(points[:, :2], axis=0).min():
            return None
        x, y = 0.5 * (top.min(0) + top.max(0))
        return float(x), float(y), float(half.max())

    def _touching(self) -> set[tuple[str, str]]:
        """Pairs of things in contact, both ways round; a part's contacts are not its fixture's."""
        model, data = self._environment.model, self._environment.data
        pairs = {
            (self._owner.get(int(a)), self._owner.get(int(b)))
            for a, b in model.geom_bodyid[data.contact.geom[: data.ncon]]
        }
        return {(a, b) for one, two in pairs for a, b in ((one, two), (two, one)) if a and b and a != b}

    def held(self) -> str | None:
        """The object that both fingers touch."""
        model, data = self._environment.model, self._environment.data
        touched: list[set[str]] = []
        for side in ("left", "right"):
            finger = descendants(model, [model.body(f"gripper0_{side}finger").id])
            bodies = model.geom_bodyid[data.contact.geom[: data.ncon]]
            found = set()
            for a, b in bodies:
                for one, other in ((a, b), (b, a)):
                    if int(one) in finger and int(other) in self._owner:
                        found.add(self._owner[int(other)])
            touched.append(found)
        both = [name for name in touched[0] & touched[1] if self.bodies[name].kind == "object"]
        return both[0] if len(both) == 1 else None

    # --- the task ---

    def _task_text(self, goals: tuple[Goal, ...]) -> str | None:
        if not goals:
            return None
        task = self._environment.task
        # libero_spatial tells its two bowls apart by where they stood at first.
        return " and ".join(goal.text for goal in goals) if task.suite == "libero_spatial" else task.language

    def goals(self, things: dict[str, Thing]) -> tuple[Goal, ...]:
        """The task's conjuncts; none where a word could mean two instances."""
        sim = self._environment.sim_env
        found: list[Goal] = []
        for predicate, name, *place in sim.parsed_problem["goal_state"]:
            goal = self._put(things, predicate, name, place[0]) if place else self._switch(things, predicate, name)
            if goal is None:
                return ()
            if goal.text not in [other.text for other in found]:
                found.append(goal)
        return tuple(found)

    def _put(self, things: dict[str, Thing], predicate: str, name: str, place: str) -> Goal | None:
        sim = self._environment.sim_env
        where = self._place(things, place)
        if where is None:
            return None
        words, receiver, region = where
        noun = things[name].noun
        alike = [other.name for other in things.values() if other.noun == noun]
        asked = [goal[1] for goal in sim.parsed_problem["goal_state"] if goal[0] == predicate and goal[2:] == [place]]
        verdicts = [bool(sim._eval_predicate([predicate, other, place])) for other in alike]
        if len(alike) == 1:
            return Goal(f"put the {noun} {words}", "put", (name,), verdicts[0], receiver, region)
        if set(alike) <= set(asked):
            return Goal(f"put both {kinds.plural(noun)} {words}", "put", tuple(alike), all(verdicts), receiver, region)
        return Goal(f"put a {noun} {words}", "put", tuple(alike), any(verdicts), receiver, region)

    def _place(self, things: dict[str, Thing], place: str) -> tuple[str, str | None, np.ndarray] | None:
        """How a goal's place is called, the thing that receives, and its region; None where words cannot tell."""
        model, data = self._environment.model, self._environment.data
        if place in things:
            thing = things[place]
            if not self._is_unique(things, thing):
                return None
            region = np.stack([thing.center - 0.5 * thing.half, thing.center + 0.5 * thing.half])
            return f"{thing.receives or 'on'} the {thing.noun}", place, region
        site = model.site(place).id
        extent = np.abs(data.site_xmat[site].reshape(3, 3)) @ model.site_size[site]
        center = self._to_base(data.site_xpos[site])
        region = np.stack([center - extent, center + extent])
        owner = self._owner.get(int(model.site_bodyid[site]))
        if owner is None:
            return (_TABLE_REGIONS[place], None, region) if place in _TABLE_REGIONS else None
        thing = things[owner]
        if not self._is_unique(things, thing):
            return None
        suffix = place.removeprefix(f"{owner.split('/')[0]}_")
        preposition, noun = _SITE_PLACES.get(suffix, (thing.receives, None))
        return f"{preposition} the {noun or thing.noun}", owner, region

    def _switch(self, things: dict[str, Thing], predicate: str, name: str) -> Goal | None:
        """Opening, closing and turning on."""
        sim = self._environment.sim_env
        if name in things:
            owner = next((part for part in things if part.startswith(f"{name}/")), name)
        else:
            owner = self._owner[int(self._environment.model.site(name).bodyid[0])]
        thing = things[owner]
        if not self._is_unique(things, thing):
            return None
        verb = {"open": "open", "close": "close", "turnon": "turn on"}.get(predicate)
        if verb is None:
            return None
        noun = thing.plain if verb == "turn on" else thing.noun
        return Goal(f"{verb} the {noun}", verb, (owner,), bool(sim._eval_predicate([predicate, name])))

    def _is_unique(self, things: dict[str, Thing], thing: Thing) -> bool:
        return sum(other.noun == thing.noun for other in things.values()) == 1


def _state(part: kinds.PartKind, position: float) -> str:
    """What a joint's position is called, "unclear" in between."""
    sign = 1.0 if part.opened > part.closed else -1.0
    if sign * position >= sign * part.opened:
        return "open" if part.verb == "open" else "on"
    if sign * position <= sign * part.closed:
        return "closed" if part.verb == "open" else "off"
    return "unclear"
