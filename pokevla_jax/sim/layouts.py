"""Where everything stands when an episode begins: seeded layouts that need eyes, and LIBERO's stored states.

"stored" is LIBERO's initial state number ``index``. "moved" starts from a stored state and moves the target by up to
6 cm, the basket by 3 cm and the distractors by 4 cm in x and y. "shared" stands four to six of the ten objects of
libero_object together, anywhere in the workspace; the target is one of them, and its place is drawn before it is known
which object stands there, so that only the instruction tells. A layout is a pure function of (kind, task, seed, index).
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import mujoco
import numpy as np

from pokevla_jax.sim import scenes
from pokevla_jax.sim.environment import SETTLE_ACTION
from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.experts.grasps import grasp_height
from pokevla_jax.sim.experts.hand import PALM_ABOVE_SITE
from pokevla_jax.sim.experts.hand import PALM_HALF
from pokevla_jax.sim.geometry import Box
from pokevla_jax.sim.geometry import collision_box
from pokevla_jax.sim.scenes import make_environment
from pokevla_jax.sim.tasks import load_init_states
from pokevla_jax.sim.tasks import load_task
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float

__all__ = ["Layout", "apply_layout", "make_environment", "sample_layout", "show_layout"]

# Range of motion of a moved layout in x and y, metres, either way.
MOVED = {"target": 0.06, "basket": 0.03, "distractor": 0.04}
# Stored states that lend their arm pose to sampled layouts; 40 to 49 stay unseen for the smoke test.
ARM_STATES = 40
# Where objects of a shared scene stand (x, then y), and the basket's usual place, as in the stock scenes.
WORKSPACE = ((-0.24, 0.12), (-0.29, 0.03))
BASKET_PLACE = (0.0, 0.26)
NUM_SHARED = (4, 6)
# Distance from the robot's base within which a hand that points down lifts things without straightening the elbow: the
# controller knows no joint limits and gets stuck at one.
REACH = 0.73
# Free space between the outlines of two objects.
CLEARANCE = 0.02
# Centre distances in x or y at which any two of the ten objects leave the palm room to grasp either.
SHARED_SPACING = (0.085, 0.155)
# Nor does one hide another from the third-person camera, which looks along x, slightly down: objects this close in y
# stand at least that far apart in x.
SHARED_SIGHT = (0.23, 0.05)
# Of a moved layout's target, the part of its outline in the third-person image that others may cover.
MAX_COVERED = 0.4
# Part of the third-person image that stays empty around the objects.
IMAGE_MARGIN = 0.02
MAX_TRIES = 2000
# Orientation in which LIBERO's stored states stand each object (w, x, y, z).
_HALF = 0.5**0.5
UPRIGHT = {
    "alphabet_soup": (0.0, 0.0, _HALF, _HALF),
    "tomato_sauce": (0.0, 0.0, _HALF, _HALF),
    "milk": (0.5, 0.5, 0.5, 0.5),
    "orange_juice": (0.5, 0.5, 0.5, 0.5),
    "salad_dressing": (0.5, 0.5, 0.5, 0.5),
    "ketchup": (0.5, 0.5, 0.5, 0.5),
    "bbq_sauce": (_HALF, 0.0, 0.0, _HALF),
    "basket": (_HALF, 0.0, 0.0, _HALF),
    "butter": (0.0, 0.0, 0.0, 1.0),
    "cream_cheese": (0.0, 0.0, 0.0, 1.0),
    "chocolate_pudding": (0.0, 0.0, 0.0, 1.0),
}


@dataclass(frozen=True)
class Layout:
    """The start of one episode; plain data, equal when everything stands at the same place.

    Attributes:
        task: index of the task in its suite; for "shared" it says which object is the target.
        init_state: stored state that gives the arm's pose (and, for "stored", everything else).
        objects: pose of each object that stands in the scene (x, y, z, then w, x, y, z of its rotation; world); empty
            for "stored". What the scene holds beyond these is parked out of sight.
    """

    kind: str
    suite: str
    task: int
    seed: int
    index: int
    target: str
    init_state: int
    objects: Mapping[str, tuple[float, ...]]

    def to_json(self) -> dict[str, Any]:
        """The layout in plain JSON types; ``from_json`` is its inverse."""
        return dataclasses.asdict(self) | {"objects": {name: list(pose) for name, pose in self.objects.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Layout":
        """The layout that ``to_json`` described.

        Raises:
            SimulationError: if the values are not a layout.
        """
        try:
            objects = {name: tuple(float(v) for v in pose) for name, pose in values["objects"].items()}
            return cls(**{**values, "objects": objects})
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise SimulationError(f"Not a layout: {error!r}; write it with Layout.to_json") from error


def sample_layout(
    environment: LiberoEnvironment, kind: str, seed: int, index: int, *, task: int | None = None
) -> Layout:
    """The layout with this number, for the environment's task or, in the shared scene, for any ``task``.

    It depends on (kind, task, seed, index) alone, not on what the environment did before.

    Raises:
        SimulationError: for an unknown kind, a scene of another kind, or when no layout without collisions was found.
    """
    suite = environment.task.suite
    scenes.check_kind(kind, suite)
    number = environment.task.index if task is None else task
    spec = load_task(suite, number)
    if number != environment.task.index and kind != "shared":
        raise SimulationError(f"This scene is compiled for {environment.task.name!r}, not for {spec.name!r}")
    if (kind == "shared") != set(scenes.shared_objects()).issubset(environment.sim_env.obj_body_id):
        raise SimulationError(f"Layouts of kind {kind!r} need their own scene: make_environment(..., kind={kind!r})")
    common: dict[str, Any] = {
        "kind": kind,
        "suite": suite,
        "task": number,
        "seed": seed,
        "index": index,
        "target": spec.target,
    }
    if kind == "stored":
        count = len(load_init_states(spec))
        if not 0 <= index < count:
            raise SimulationError(f"{spec.name!r} has stored states 0 to {count - 1}, not {index}")
        return Layout(**common, init_state=index, objects={})
    rng = np.random.default_rng([scenes.KINDS.index(kind), number, seed, index])
    init_state = int(rng.integers(ARM_STATES))
    sample, count = _Sampler(environment), int(rng.integers(NUM_SHARED[0], NUM_SHARED[1] + 1))
    for _ in range(MAX_TRIES):
        if kind == "moved":
            poses = sample.moved(rng, load_init_states(spec)[init_state], spec.target)
        else:
            poses = sample.shared(rng, number, count)
        if poses is not None:
            return Layout(**common, init_state=init_state, objects=poses)
    raise SimulationError(
        f"No {kind} layout without collisions for {spec.name!r}, seed {seed}, index {index} in {MAX_TRIES} tries; "
        "take another index"
    )


def apply_layout(environment: LiberoEnvironment, layout: Layout, *, settle_steps: int = 10) -> None:
    """Resets the environment into the layout and lets it come to rest: ready for the first policy step.

    Raises:
        SimulationError: for a layout of another scene, or when something still moves after twice ``settle_steps``.
    """
    spec = load_task(layout.suite, layout.task)
    present = set(environment.sim_env.obj_body_id)
    # A stored state holds all of its task's scene, and its target may be a drawer.
    if layout.kind != "stored" and not {layout.target, *layout.objects} <= present:
        raise SimulationError(
            f"The layout is one of {spec.name!r}, which is not the scene of {environment.task.name!r}"
        )
    if layout.kind == "shared":
        environment.set_task(scenes.shared_task(layout.task))
    elif environment.task.name != spec.name:
        raise SimulationError(
            f"The layout is one of {spec.name!r}, the environment's task is {environment.task.name!r}"
        )
    stored = load_init_states(spec)[layout.init_state]
    environment.reset(_start_state(environment, layout, stored), settle_steps=0)
    show_layout(environment, layout)
    for _ in range(settle_steps):
        environment.step(SETTLE_ACTION)
    if layout.kind == "stored":
        return
    for _ in range(settle_steps):
        if _speed(environment) < 0.02:
            return
        environment.step(SETTLE_ACTION)
    if _speed(environment) >= 0.02:
        raise SimulationError(f"Layout {layout.index} of seed {layout.seed} does not come to rest; take another index")


def show_layout(environment: LiberoEnvironment, layout: Layout) -> None:
    """Shows what stands in the layout and hides the rest, for rendering its stored states."""
    if layout.kind == "shared":
        environment.set_task(scenes.shared_task(layout.task))
    scenes.show(environment, layout.objects or environment.sim_env.obj_body_id)


def _start_state(environment: LiberoEnvironment, layout: Layout, stored: np.ndarray) -> Float[np.ndarray, " d"]:
    """Time, positions and velocities of the layout; only the arm is taken from the stored state."""
    if layout.kind == "stored":
        return stored
    model = environment.model
    state = np.concatenate([[0.0], model.qpos0, np.zeros(model.nv)])
    arm = _arm_joints(environment)
    state[1 + arm] = stored[1 + arm]
    for name, body in environment.sim_env.obj_body_id.items():
        address = 1 + model.jnt_qposadr[model.body_jntadr[body]]
        parked = (*scenes.parking_position(environment, name), 1.0, 0.0, 0.0, 0.0)
        state[address : address + 7] = layout.objects.get(name, parked)
    return state


def _arm_joints(environment: LiberoEnvironment) -> np.ndarray:
    """Positions of arm and finger joints in qpos: the same in every scene, since the robot comes first."""
    robot = environment.sim_env.robots[0]
    return np.concatenate([robot._ref_joint_pos_indexes, robot._ref_gripper_joint_pos_indexes]).astype(int)


def _speed(environment: LiberoEnvironment) -> float:
    """The fastest motion of any object, m/s or rad/s."""
    model, data = environment.model, environment.data
    addresses = [model.jnt_dofadr[model.body_jntadr[body]] for body in environment.sim_env.obj_body_id.values()]
    return max(float(np.abs(data.qvel[a : a + 6]).max()) for a in addresses)


class _Sampler:
    """One try at placing the objects of a scene; None where they would collide or leave the picture."""

    def __init__(self, environment: LiberoEnvironment):
        self._environment = environment
        self._local = {
            name: collision_box(environment.model, body) for name, body in environment.sim_env.obj_body_id.items()
        }
        self._camera = environment.camera("agentview")
        self._base_from_world = environment.base_from_world()

    def moved(self, rng: np.random.Generator, stored: np.ndarray, target: str) -> dict[str, tuple[float, ...]] | None:
        """Every object of a stored state, moved."""
        model, poses = self._environment.model, {}
        for name, body in self._environment.sim_env.obj_body_id.items():
            role = {target: "target", scenes.BASKET: "basket"}.get(name, "distractor")
            address = 1 + model.jnt_qposadr[model.body_jntadr[body]]
            poses[name] = self._standing(name, stored[address : address + 2] + rng.uniform(-1, 1, 2) * MOVED[role])
        boxes = {name: self._box(name, pose) for name, pose in poses.items()}
        others = [box for name, box in boxes.items() if name != target]
        if not self._in_reach(np.array([poses[target][:2]])).all():
            return None
        free = all(
            _apart(a, b, CLEARANCE, CLEARANCE) for i, a in enumerate(boxes.values()) for b in [*boxes.values()][:i]
        )
        if not (free and _graspable(boxes[target], others)):
            return None
        outlines = {name: self._outline(box) for name, box in boxes.items()}
        inside = all(np.abs(outline[:, :2] - 0.5).max() < 0.5 - IMAGE_MARGIN for outline in outlines.values())
        hidden = any(_covered(outlines[target], outlines[name]) > MAX_COVERED for name in boxes if name != target)
        return poses if inside and not hidden else None

    def shared(self, rng: np.random.Generator, task: int, count: int) -> dict[str, tuple[float, ...]] | None:
        """``count`` of the ten objects; places are drawn first, so that they do not depend on who stands there."""
        names = scenes.shared_objects()
        places: list[np.ndarray] = []
        low, high = np.transpose(WORKSPACE)
        for _ in range(count):
            candidates = rng.uniform(low, high, (100, 2))
            free = self._in_reach(candidates)
            for place in places:
                x, y = np.abs(candidates - place).T
                in_sight = (x > SHARED_SIGHT[0]) | (y > SHARED_SIGHT[1])
                free &= (y > SHARED_SPACING[1]) | ((x > SHARED_SPACING[0]) & in_sight)
            if not free.any():
                return None
            places.append(candidates[free.argmax()])
        others = rng.permutation([i for i in range(len(names)) if i != task])[: count - 1]
        # Later places had less room; in this order any object is as likely to have one.
        order = rng.permutation(count)
        poses = {names[i]: self._standing(names[i], places[k]) for i, k in zip([task, *others], order, strict=True)}
        basket = np.add(BASKET_PLACE, rng.uniform(-1, 1, 2) * MOVED["basket"])
        return poses | {scenes.BASKET: self._standing(scenes.BASKET, basket)}

    def _in_reach(self, places: Float[np.ndarray, "n 2"]) -> Bool[np.ndarray, " n"]:
        return np.linalg.norm(places + self._base_from_world[:2, 3], axis=-1) < REACH

    def _standing(self, name: str, place: Float[np.ndarray, "2"]) -> tuple[float, ...]:
        """The upright pose at ``place``, a millimetre above the floor."""
        quaternion = UPRIGHT[name.rsplit("_", 1)[0]]
        box = self._box(name, (*place, 0.0, *quaternion))
        height = 0.001 - (2 * box.center[2] - box.top)
        return tuple(round(float(v), 6) for v in (*place, height, *quaternion))

    def _box(self, name: str, pose: tuple[float, ...]) -> Box:
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, np.array(pose[3:]))
        return self._local[name].placed(np.array(pose[:3]), rotation.reshape(3, 3))

    def _outline(self, box: Box) -> Float[np.ndarray, "8 3"]:
        """The box's corners in the third-person image (right, down; 0 to 1) and their distance along its axis."""
        signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
        points = box.center + (signs * box.half) @ box.rotation.T
        base = points @ self._base_from_world[:3, :3].T + self._base_from_world[:3, 3]
        pose = self._camera.base_from_camera
        seen = (base - pose[:3, 3]) @ pose[:3, :3]
        pixels = (seen @ self._camera.intrinsics.T)[:, :2] / seen[:, 2:]
        return np.concatenate([pixels / self._environment.image_size, seen[:, 2:]], 1)


def _covered(outline: Float[np.ndarray, "8 3"], other: Float[np.ndarray, "8 3"]) -> float:
    """The part of an object's image rectangle that another object's rectangle covers, if that one is nearer."""
    if other[:, 2].mean() > outline[:, 2].mean():
        return 0.0
    low, high = outline.min(0)[:2], outline.max(0)[:2]
    common = np.minimum(high, other.max(0)[:2]) - np.maximum(low, other.min(0)[:2])
    return float(common.clip(0.0).prod() / (high - low).prod())


def _apart(a: Box, b: Box, x: float, y: float) -> bool:
    """Whether the outlines of two standing objects are ``x`` apart along x or ``y`` along y."""
    gap = np.abs(a.center - b.center)[:2] - [a.extent(axis) + b.extent(axis) for axis in np.eye(3)[:2]]
    return bool(gap[0] >= x or gap[1] >= y)


def _graspable(target: Box, others: list[Box]) -> bool:
    """Whether open fingers and palm (a bar along y) reach the target without touching a neighbour."""
    palm_height = grasp_height(target) + PALM_ABOVE_SITE
    hand = Box(target.center, np.array([0.0, 0.0, 0.0]), np.eye(3))
    return all(
        _apart(hand, other, 0.015 + target.extent(np.eye(3)[0]), 0.075)
        and (other.top < palm_height or _apart(hand, other, PALM_HALF[1] + 0.01, PALM_HALF[0] + 0.01))
        for other in others
    )
