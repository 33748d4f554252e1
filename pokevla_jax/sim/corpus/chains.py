"""A chain of scenes that differ by one change each; every scene is at rest when it is looked at."""

from collections.abc import Callable
from collections.abc import Iterator
from dataclasses import dataclass

import mujoco
import numpy as np

from pokevla_jax.sim.corpus.facts import Frame
from pokevla_jax.sim.corpus.facts import Goal
from pokevla_jax.sim.corpus.facts import Outcome
from pokevla_jax.sim.corpus.facts import Thing
from pokevla_jax.sim.corpus.observe import Observer
from pokevla_jax.sim.environment import SETTLE_ACTION
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.typing import Float

# Free space between the boxes of two things that stand on the table, and the largest turn of one that is moved.
CLEARANCE, MAX_TURN = 0.015, 0.8
# What stored states use of the table, and this much around it.
WORKSPACE_MARGIN = 0.06
TRIES = 60
# Control steps of a change: while the arm moves, then while it rests and things come to rest.
ARM_STEPS, REST_STEPS = (2, 8), 5
REST_SPEED = 0.03


@dataclass(frozen=True)
class Look:
    """A frame, and the one before it of which "what changed" may be asked."""

    frame: Frame
    before: Frame | None


def workspace(environment: LiberoEnvironment) -> Float[np.ndarray, "2 2"]:
    """Low and high (x, y), base frame, of where objects stand in the task's stored states, and a little around."""
    states = load_init_states(environment.task)
    places = np.concatenate(
        [states[:, 1 + address : 3 + address] for address in free_joints(environment).values()], axis=0
    )
    places = places + environment.base_from_world()[:2, 3]
    return np.stack([places.min(0) - WORKSPACE_MARGIN, places.max(0) + WORKSPACE_MARGIN])


def free_joints(environment: LiberoEnvironment) -> dict[str, int]:
    """Address in qpos of each movable object's pose."""
    model, sim = environment.model, environment.sim_env
    return {
        name: int(model.jnt_qposadr[model.body_jntadr[body]])
        for name, body in sim.obj_body_id.items()
        if name in sim.objects_dict
    }


class Simulation:
    """What chains and episodes share: editing poses, wandering, coming to rest."""

    def __init__(
        self, environment: LiberoEnvironment, observer: Observer, rng: np.random.Generator, name: str, layout: int
    ):
        self.environment, self.observer, self.rng = environment, observer, rng
        self.name, self.layout = name, layout
        self.objects = free_joints(environment)

    def look(self, number: int, outcomes: tuple[Outcome, ...] = ()) -> Frame:
        return self.observer.frame(f"{self.name}/{number}", self.layout, outcomes=outcomes)

    def step(self, action: np.ndarray) -> bool:
        return self.environment.step(action)

    def wander(self, steps: int) -> None:
        """Moves the hand a few centimetres in a random direction."""
        action = np.zeros(7)
        action[:3] = self.rng.uniform(-0.8, 0.8, 3)
        action[3:6] = self.rng.uniform(-0.15, 0.15, 3)
        action[6] = self.rng.choice([-1.0, 1.0])
        for _ in range(steps):
            self.step(action)

    def speed(self) -> float:
        """The fastest object, m/s or rad/s."""
        model, data = self.environment.model, self.environment.data
        addresses = [
            model.jnt_dofadr[model.body_jntadr[self.environment.sim_env.obj_body_id[name]]] for name in self.objects
        ]
        return max(float(np.abs(data.qvel[a : a + 6]).max()) for a in addresses)


class Chain(Simulation):
    """Scenes that differ by one change each."""

    def looks(self, count: int) -> Iterator[Look]:
        """The start, and what each change led to; fewer than ``count`` where no change could be done."""
        self.start()
        before = self.look(0)
        yield Look(before, None)
        number = 1
        while number < count:
            state = self.environment.sim_state()
            for _ in range(TRIES):
                if self._change():
                    break
                self.environment.set_sim_state(state)
            else:
                return
            frame = self.look(number)
            yield Look(frame, before)
            before, number = frame, number + 1

    def start(self) -> None:
        """A random start at rest; raises ``SimulationError`` where none is found."""
        for _ in range(TRIES):
            if self._start():
                return
        raise SimulationError(f"No scene of {self.name} came to rest; give another --seed")

    def _start(self) -> bool:
        """A stored state with most objects moved, moving parts set, and the arm elsewhere."""
        states = load_init_states(self.environment.task)
        self.environment.reset(states[self.rng.integers(len(states))], settle_steps=0)
        for part in self._parts():
            if self.rng.random() < 0.5:
                self._set_part(part)
        mujoco.mj_forward(self.environment.model, self.environment.data)
        for name in self.rng.permutation(list(self.objects)):
            if self.rng.random() < 0.8:
                self._move(str(name))
        return self._settled_after(lambda: True)

    def _change(self) -> bool:
        """One random change; False when it could not be done or did not come to rest."""
        kinds = ["move", "move", "put", "put", "goal", "goal", "goal", "part", "none"]
        kind = kinds[self.rng.integers(len(kinds))]
        name = str(self.rng.choice(list(self.objects)))
        if kind == "goal":
            return self._settled_after(self._reach_goal)
        if kind == "put":
            return self._settled_after(lambda: self._put_somewhere(name))
        if kind == "part" and self._parts():
            part = self._parts()[self.rng.integers(len(self._parts()))]
            return self._settled_after(lambda: self._set_part(part))
        if kind == "none":
            return self._settled_after(lambda: True)
        return self._settled_after(lambda: self._move(name))

    def _settled_after(self, change: Callable[[], bool]) -> bool:
        """Makes a change, lets the arm wander and everything come to rest; False if anything fell or still moves."""
        if not change():
            return False
        low, high = ARM_STEPS
        self.wander(int(self.rng.integers(low, high + 1)))
        for _ in range(3):
            for _ in range(REST_STEPS):
                self.step(SETTLE_ACTION)
            if self.speed() < REST_SPEED:
                return self._in_place()
        return False

    def _in_place(self) -> bool:
        """Whether every object still lies above the table, within arm's reach of where objects belong."""
        low, high = self.observer.workspace
        for name in self.objects:
            center, half = self.observer.box(name)
            if center[2] - half[2] < self.observer.surface - 0.02:
                return False
            if (center[:2] < low - 0.15).any() or (center[:2] > high + 0.15).any():
                return False
        return True

    # --- changes ---

    def _parts(self) -> list[str]:
        return [name for name, body in self.observer.bodies.items() if body.part is not None]

    def _set_part(self, name: str, opened: bool | None = None) -> bool:
        """Sets a drawer, a door or a knob open or closed."""
        body = self.observer.bodies[name]
        assert body.part is not None
        part = body.part
        if opened is None:
            opened = bool(self.rng.random() < 0.5)
        low, high = sorted(self.environment.model.jnt_range[self._joint_of(body.joint)])
        limit = low if part.opened < part.closed else high
        rest = high if limit == low else low
        # Between what counts as open and the joint's stop; closed is at rest, near zero.
        value = part.opened + self.rng.random() * (limit - part.opened) * 0.9 if opened else 0.2 * rest
        self.environment.data.qpos[body.joint] = value
        self._still()
        return True

    def _joint_of(self, address: int) -> int:
        return int(np.flatnonzero(self.environment.model.jnt_qposadr == address)[0])

    def _still(self) -> None:
        """No velocities, and everything that follows from the new positions."""
        self.environment.data.qvel[:] = 0.0
        mujoco.mj_forward(self.environment.model, self.environment.data)

    def _free_to_move(self, name: str) -> bool:
        """Whether nothing lies in or on it."""
        return all(thing.inside != name for thing in self.observer.things().values())

    def _place(self, name: str, center: np.ndarray, turn: float = 0.0) -> None:
        """Moves an object's box to this centre (base frame), turned about the vertical."""
        data = self.environment.data
        address = self.objects[name]
        if turn:
            spin, turned = np.array([np.cos(turn / 2), 0.0, 0.0, np.sin(turn / 2)]), np.empty(4)
            mujoco.mju_mulQuat(turned, spin, data.qpos[address + 3 : address + 7])
            data.qpos[address + 3 : address + 7] = turned
            self._still()
        data.qpos[address : address + 3] += center - self.observer.box(name)[0]
        self._still()

    def _move(self, name: str) -> bool:
        """To a free place on the table, a few millimetres above it."""
        if not self._free_to_move(name):
            return False
        low, high = self.observer.workspace
        start = self.observer.box(name)[0]
        self._place(name, start, float(self.rng.uniform(-MAX_TURN, MAX_TURN)))
        half = self.observer.box(name)[1]
        others = [self.observer.box(other) for other in self.observer.bodies if other != name]
        for _ in range(TRIES):
            place = self.rng.uniform(low, high)
            if all((np.abs(place - c[:2]) >= half[:2] + h[:2] + CLEARANCE).any() for c, h in others):
                self._place(name, np.append(place, self.observer.surface + half[2] + 0.003))
                return True
        return False

    def _put_somewhere(self, name: str) -> bool:
        """Into or onto a random thing that receives things."""
        receivers = [
            other
            for other, body in self.observer.bodies.items()
            if body.words.receives is not None and other != name and body.words.group not in ("caddy", "stove", "rack")
        ]
        if not receivers or not self._free_to_move(name):
            return False
        return self._put_in(name, receivers[self.rng.integers(len(receivers))])

    def _put_in(self, name: str, receiver: str, region: np.ndarray | None = None) -> bool:
        """Above the middle of a receiver (or of a region of it), from where it falls into place."""
        body = self.observer.bodies[receiver]
        if body.part is not None:
            self._set_part(receiver, opened=True)
        for other in self.observer.bodies.values():
            if body.words.group == "microwave" and other.name.startswith(f"{receiver}/"):
                self._set_part(other.name, opened=True)
        center, half = self.observer.box(receiver)
        own = self.observer.box(name)[1]
        if region is None and (own[:2] > half[:2]).any():
            return False
        target = 0.5 * (region[0] + region[1]) if region is not None else center.copy()
        inside = body.words.receives == "in" and (body.words.group in ("basket", "microwave") or body.kind == "part")
        floor = (region[0][2] if region is not None else center[2] - half[2]) if inside else center[2] + half[2]
        if region is not None and not inside:
            floor = max(floor, region[1][2])
        target[:2] += self.rng.uniform(-0.01, 0.01, 2)
        target[2] = floor + own[2] + 0.012
        self._place(name, target)
        return True

    def _reach_goal(self) -> bool:
        """Brings one conjunct of the task about that does not hold yet; or, where all do, undoes one."""
        things = self.observer.things()
        goals = self.observer.goals(things)
        open_goals = [goal for goal in goals if not goal.holds]
        if not goals:
            return False
        if open_goals:
            return self._fulfil(things, open_goals[self.rng.integers(len(open_goals))])
        goal = goals[self.rng.integers(len(goals))]
        name = str(self.rng.choice(list(goal.things)))
        return self._move(name) if goal.verb == "put" else self._set_part(name, goal.verb == "close")

    def _fulfil(self, things: dict[str, Thing], goal: Goal) -> bool:
        if goal.verb != "put":
            return self._set_part(goal.things[0], goal.verb != "close")
        name = str(self.rng.choice(list(goal.things)))
        if goal.region is None or not self._free_to_move(name):
            return False
        if goal.place is not None:
            # A drawer is opened for it, and its region goes along.
            is_part = self.observer.bodies[goal.place].part is not None
            return self._put_in(name, goal.place, None if is_part else goal.region)
        half = things[name].half
        center = 0.5 * (goal.region[0] + goal.region[1])
        self._place(name, np.append(center[:2], self.observer.surface + half[2] + 0.003))
        return True
