"""A scripted demonstrator for LIBERO's pick-and-place tasks: what to do in any state, read from the simulator.

The expert has no memory. Where it is in the task (above the object, descending, closing, lifting, carrying, lowering,
opening) follows from the present state alone, so it labels every state that a learner or a random burst may reach:
a half-closed gripper, a dropped or toppled object, a hand that was pushed aside. Motion is proportional to the
distance that is left and gated by smooth functions of the state, so that neighbouring states get neighbouring actions.
"""

from dataclasses import dataclass

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.geometry import Box
from pokevla_jax.sim.geometry import collision_box
from pokevla_jax.typing import Float

OPEN, CLOSE = -1.0, 1.0
# Gains: an action of 1 moves the hand by about 15 mm and 0.15 rad in one control step (measured).
POSITION_GAIN = 15.0
ROTATION_GAIN = 1.5
# Half the width that fits between the opened fingers with a millimetre or two to spare.
MAX_HALF_WIDTH = 0.037
FINGER_OPENING = 0.0385
# The palm is 31 mm above the grip site and the finger tips 9 mm below it: an object's top may be this far above the
# site, and the site this far above the floor.
TOP_ABOVE_SITE = 0.029
SITE_ABOVE_FLOOR = 0.0125
# The palm is a bar over the fingers: half its length and width, and the height of its underside above the grip site.
PALM_HALF = (0.106, 0.032)
PALM_ABOVE_SITE = 0.031
# A grasp may be this far off the object's middle, to keep the palm off a tall neighbour.
MAX_SIDESTEP = 0.022
# Grip site's height while travelling with open fingers: finger tips above the tallest object (147 mm).
HOVER = 0.20
# The carried object's lower end passes this high; the basket's rim is at 146 mm.
CARRY_CLEARANCE = 0.165
# Centre height at which the object is let go: above the goal region's top (136 mm), so that success takes opening.
RELEASE_HEIGHT = 0.155


@dataclass(frozen=True)
class _Hand:
    """The gripper now: grip site, orientation (x along the fingers' motion, z forward), opening in [0, 1], grip."""

    position: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    opening: float
    holding: bool


class ScriptedExpert:
    """Picks the task's target up and lets it fall into the basket, from any state of the scene.

    Args:
        environment: a scene whose task is "put the target into the basket" (all of libero_object).

    Raises:
        SimulationError: for a task of another kind.
    """

    def __init__(self, environment: LiberoEnvironment):
        self._environment = environment
        if not environment.task.goal_object.startswith("basket"):
            raise SimulationError(
                f"The scripted expert puts things into a basket (libero_object); it cannot do {environment.task.name!r}"
            )
        self._boxes: dict[str, Box] = {}

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state, in [-1, 1]: translation, rotation, gripper (-1 open, +1 close)."""
        task = self._environment.task
        target, basket = self._box(task.target), self._box(task.goal_object)
        hand = self._hand(task.target)
        # A hand that has the object, or has just let it go, turns no more.
        yaw = float(np.arctan2(-hand.rotation[0, 0], hand.rotation[1, 0]))
        if hand.holding:
            goal, gripper = _carry(hand, target, basket)
        elif np.abs(target.center - basket.center)[:2].max() < 0.06 and target.center[2] < RELEASE_HEIGHT + 0.02:
            goal, gripper = _leave(hand, target), OPEN
        else:
            others = [self._box(n) for n in self._environment.sim_env.obj_body_id if n != task.target]
            grasp = _choose_grasp(target, others)
            goal, gripper = _approach(hand, target, grasp, yaw)
            yaw = grasp.yaw
        translation = POSITION_GAIN * (goal - hand.position)
        rotation = ROTATION_GAIN * _rotation_vector(_downward(yaw) @ hand.rotation.T)
        # Height has its own limit, so that a long way sideways does not starve it.
        motion = [_limit(translation[:2]), np.clip(translation[2:], -1.0, 1.0), _limit(rotation)]
        return np.concatenate([*motion, [gripper]]).astype(np.float32)

    def _box(self, name: str) -> Box:
        """The object's bounding box where it is now."""
        environment = self._environment
        body = environment.sim_env.obj_body_id[name]
        if name not in self._boxes:
            self._boxes[name] = collision_box(environment.model, body)
        return self._boxes[name].placed(environment.data.xpos[body], environment.data.xmat[body].reshape(3, 3))

    def _hand(self, target: str) -> _Hand:
        environment = self._environment
        model, data = environment.model, environment.data
        robot = environment.sim_env.robots[0]
        width = np.abs(data.qpos[robot._ref_gripper_joint_pos_indexes]).sum()
        # A finger's pad is a child body of its own.
        bodies = model.geom_bodyid[data.contact.geom[: data.ncon]]
        parents = model.body_parentid[bodies]
        with_target = (bodies == environment.sim_env.obj_body_id[target]).any(1)
        touching = [
            bool((((bodies == finger) | (parents == finger)).any(1) & with_target).any())
            for finger in (model.body(f"gripper0_{side}finger").id for side in ("left", "right"))
        ]
        return _Hand(
            position=data.site_xpos[robot.eef_site_id].copy(),
            rotation=data.site_xmat[robot.eef_site_id].reshape(3, 3).copy(),
            opening=float(np.clip(width / 0.08, 0.0, 1.0)),
            holding=all(touching),
        )


def grasp_height(target: Box) -> float:
    """Height of the grip site when the fingers close: as low as the palm and the floor allow."""
    return max(target.top - TOP_ABOVE_SITE, SITE_ABOVE_FLOOR)


@dataclass(frozen=True)
class _Grasp:
    """Where the grip site and how the fingers stand when they close.

    Attributes:
        along: horizontal direction of the fingers' motion; ``yaw`` is its angle from world y.
        across: horizontal direction at a right angle to it.
    """

    position: Float[np.ndarray, "3"]
    yaw: float
    along: Float[np.ndarray, "3"]
    across: Float[np.ndarray, "3"]


def _choose_grasp(target: Box, others: list[Box]) -> _Grasp:
    """The grasp across a side that fits between the fingers, with the palm clear of its neighbours, turned the least.

    A flat box (cream cheese, butter) needs the palm low, where it would land on a can or bottle 10 cm away: the grasp
    then moves off the object's middle, away from the neighbour.
    """
    options: list[tuple[bool, bool, float, int, _Grasp]] = []
    for axis, half in zip(target.rotation.T, target.half, strict=True):
        if abs(axis[2]) > 0.6:
            continue
        # Both fingers are alike, half a turn is the same grasp; the wrist has more room on the positive side.
        yaw = float((np.arctan2(-axis[0], axis[1]) + 1.27) % np.pi - 1.27)
        along, across = np.array([-np.sin(yaw), np.cos(yaw), 0.0]), np.array([np.cos(yaw), np.sin(yaw), 0.0])
        position = np.append(target.center[:2], grasp_height(target))
        shift = _sidestep(position, along, across, others)
        limit = min(MAX_SIDESTEP, max(target.extent(across) - 0.015, 0.0))
        grasp = _Grasp(position + across * np.clip(shift, -limit, limit), yaw, along, across)
        options.append((half > MAX_HALF_WIDTH, abs(shift) > limit + 0.01, abs(yaw), len(options), grasp))
    return min(options)[-1]


def _sidestep(
    position: Float[np.ndarray, "3"],
    along: Float[np.ndarray, "3"],
    across: Float[np.ndarray, "3"],
    others: list[Box],
) -> float:
    """How far a grasp has to move along ``across``, so that the palm passes its tall neighbours."""
    shift = 0.0
    for other in others:
        if other.top < position[2] + PALM_ABOVE_SITE:
            continue
        way = float((other.center - position) @ across)
        gap_along = abs((other.center - position) @ along) - PALM_HALF[0] - other.extent(along)
        gap_across = abs(way) - PALM_HALF[1] - other.extent(across)
        if gap_along < 0.005 and gap_across < 0.008:
            shift -= np.sign(way) * (0.008 - gap_across)
    return shift


def _approach(hand: _Hand, target: Box, grasp: _Grasp, yaw: float) -> tuple[Float[np.ndarray, "3"], float]:
    """Where a hand at ``yaw`` goes to grasp, and the gripper: down a funnel onto the object, then close."""
    offset = (grasp.position - hand.position)[:2]
    # Along the fingers' motion the object must fit between them; across it a centimetre does not matter.
    slack = np.clip(FINGER_OPENING - target.extent(grasp.along), 0.003, 0.012)
    turn = abs((grasp.yaw - yaw + np.pi) % (2 * np.pi) - np.pi)
    miss = np.linalg.norm(
        [
            max(abs(offset @ grasp.along[:2]) - slack, 0.0),
            max(abs(offset @ grasp.across[:2]) - 0.010, 0.0),
            0.03 * max(turn - 0.15, 0.0),
        ]
    )
    depth = hand.position[2] - grasp.position[2]
    # Half-closed fingers that have the object between them go on closing where opened ones would still adjust.
    if miss < 0.004 + 0.01 * (1.0 - hand.opening) and depth < 0.008 + 0.012 * (1.0 - hand.opening):
        return grasp.position, CLOSE
    funnel = 8.0 * float(miss)
    if hand.opening < 0.9:
        # Closed fingers would land on the object: open above it.
        funnel = max(funnel, target.top + 0.03 - grasp.position[2])
    hover = max(HOVER, target.top + 0.05)
    goal = np.append(grasp.position[:2], min(grasp.position[2] + funnel, hover))
    # From between the objects, first rise: sideways speed grows with the height above the funnel.
    below = goal[2] - hand.position[2]
    goal[:2] = hand.position[:2] + offset * np.clip(1.0 - below / 0.08, 0.0, 1.0)
    return goal, OPEN


def _carry(hand: _Hand, target: Box, basket: Box) -> tuple[Float[np.ndarray, "3"], float]:
    """Where the hand takes the held object, and the gripper: up, over the basket, down, open."""
    offset = (basket.center - target.center)[:2]
    distance = float(np.linalg.norm(offset))
    height = target.top - target.center[2]
    bottom = target.center[2] - height
    high = CARRY_CLEARANCE + height
    inside = np.clip((0.05 - distance) / 0.03, 0.0, 1.0)
    center_height = high + inside * (RELEASE_HEIGHT - high)
    # Sideways only when the lower end is clear of what stands around, fully at travelling height or over the basket.
    clear = np.clip((bottom - 0.05) / (CARRY_CLEARANCE - 0.02 - 0.05), 0.0, 1.0)
    goal = hand.position + np.append(offset * max(clear, inside), center_height - target.center[2])
    arrived = distance < 0.03 and target.center[2] < RELEASE_HEIGHT + 0.01
    return goal, OPEN if arrived else CLOSE


def _leave(hand: _Hand, target: Box) -> Float[np.ndarray, "3"]:
    """Where the hand goes once the object is let go over the basket: up when it has fallen out of the fingers.

    A carton's roof can catch on a finger pad: as long as it has not fallen, the hand sinks, which sets it down.
    """
    fallen = target.top < hand.position[2]
    return hand.position + np.array([0.0, 0.0, HOVER + 0.05 - hand.position[2] if fallen else -0.02])


def _downward(yaw: float) -> Float[np.ndarray, "3 3"]:
    """The grip site's orientation, pointing down, with its x axis (the fingers' motion) at ``yaw`` from world y."""
    s, c = np.sin(yaw), np.cos(yaw)
    return np.array([[-s, c, 0.0], [c, s, 0.0], [0.0, 0.0, -1.0]])


def _rotation_vector(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """Axis times angle of a rotation matrix, for angles below half a turn."""
    axis = 0.5 * np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    sine = np.linalg.norm(axis)
    if sine < 1e-9:
        return axis
    return axis / sine * np.arctan2(sine, 0.5 * (np.trace(rotation) - 1.0))


def _limit(action: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The action shortened to length 1; keeping its direction makes paths straight."""
    return action / max(1.0, float(np.linalg.norm(action)))
