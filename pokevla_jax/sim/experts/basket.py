"""Putting groceries into the basket: from above, past tall neighbours, let fall between the basket's walls."""

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.experts.grasps import MAX_HALF_WIDTH
from pokevla_jax.sim.experts.grasps import Grasp
from pokevla_jax.sim.experts.grasps import approach
from pokevla_jax.sim.experts.grasps import box_slack
from pokevla_jax.sim.experts.grasps import grasp_height
from pokevla_jax.sim.experts.hand import CLOSE
from pokevla_jax.sim.experts.hand import OPEN
from pokevla_jax.sim.experts.hand import PALM_ABOVE_SITE
from pokevla_jax.sim.experts.hand import PALM_HALF
from pokevla_jax.sim.experts.hand import Hand
from pokevla_jax.sim.experts.hand import downward
from pokevla_jax.sim.experts.hand import move
from pokevla_jax.sim.experts.hand import read_hand
from pokevla_jax.sim.experts.obstacles import floor_height
from pokevla_jax.sim.geometry import Box
from pokevla_jax.sim.geometry import collision_box
from pokevla_jax.typing import Float

# A grasp may be this far off the object's middle, to keep the palm off a tall neighbour.
MAX_SIDESTEP = 0.022
# Heights above what the objects stand on. The grip site's while travelling with open fingers: finger tips above the
# tallest object (147 mm).
HOVER = 0.20
# The carried object's lower end passes this high; the basket's rim is at 146 mm.
CARRY_CLEARANCE = 0.165
# Centre height at which the object is let go: above the goal region's top (136 mm), so that success takes opening.
RELEASE_HEIGHT = 0.155


class BasketExpert:
    """Picks ``target`` up and lets it fall into ``basket``, from any state of the scene."""

    def __init__(self, environment: LiberoEnvironment, target: str, basket: str):
        self._environment = environment
        self._target, self._basket = target, basket
        self._boxes: dict[str, Box] = {}
        self._on_floor = floor_height(environment) == 0.0

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state."""
        bodies = self._environment.sim_env.obj_body_id
        target, basket = self._box(self._target), self._box(self._basket)
        # A table's top is a little above its nominal height; the basket shows where.
        floor = 0.0 if self._on_floor else 2.0 * float(basket.center[2]) - basket.top
        hand = read_hand(self._environment, [bodies[self._target]])
        # A hand that has the object, or has just let it go, turns no more.
        yaw = hand.yaw
        inside = np.abs(target.center - basket.center)[:2].max() < 0.06
        if hand.holding:
            goal, gripper = _carry(hand, target, basket, floor)
        elif inside and target.center[2] - floor < RELEASE_HEIGHT + 0.02:
            goal, gripper = _leave(hand, target, floor), OPEN
        else:
            others = [self._box(name) for name in bodies if name != self._target]
            grasp = _choose_grasp(target, others, floor)
            hover = max(HOVER + floor, target.top + 0.05)
            goal, gripper = approach(hand, grasp, yaw, target.top, hover)
            yaw = grasp.yaw
        return move(hand, goal, downward(yaw), gripper)

    def _box(self, name: str) -> Box:
        """The object's bounding box where it is now."""
        environment = self._environment
        body = environment.sim_env.obj_body_id[name]
        if name not in self._boxes:
            self._boxes[name] = collision_box(environment.model, body)
        return self._boxes[name].placed(environment.data.xpos[body], environment.data.xmat[body].reshape(3, 3))


def _choose_grasp(target: Box, others: list[Box], floor: float) -> Grasp:
    """The grasp across a side that fits between the fingers, with the palm clear of its neighbours, turned the least.

    A flat box (cream cheese, butter) needs the palm low, where it would land on a can or bottle 10 cm away: the grasp
    then moves off the object's middle, away from the neighbour.
    """
    options: list[tuple[bool, bool, float, int, Grasp]] = []
    for axis, half in zip(target.rotation.T, target.half, strict=True):
        if abs(axis[2]) > 0.6:
            continue
        middle = Grasp.at(np.append(target.center[:2], grasp_height(target, floor)), axis, 0.0)
        shift = _sidestep(middle, others)
        limit = min(MAX_SIDESTEP, max(target.extent(middle.across) - 0.015, 0.0))
        position = middle.position + middle.across * np.clip(shift, -limit, limit)
        grasp = Grasp.at(position, axis, box_slack(target, middle.along))
        options.append((half > MAX_HALF_WIDTH, abs(shift) > limit + 0.01, abs(grasp.yaw), len(options), grasp))
    return min(options)[-1]


def _sidestep(grasp: Grasp, others: list[Box]) -> float:
    """How far a grasp has to move along ``across``, so that the palm passes its tall neighbours."""
    shift = 0.0
    for other in others:
        if other.top < grasp.position[2] + PALM_ABOVE_SITE:
            continue
        way = float((other.center - grasp.position) @ grasp.across)
        gap_along = abs((other.center - grasp.position) @ grasp.along) - PALM_HALF[0] - other.extent(grasp.along)
        gap_across = abs(way) - PALM_HALF[1] - other.extent(grasp.across)
        if gap_along < 0.005 and gap_across < 0.008:
            shift -= np.sign(way) * (0.008 - gap_across)
    return shift


def _carry(hand: Hand, target: Box, basket: Box, floor: float) -> tuple[Float[np.ndarray, "3"], float]:
    """Where the hand takes the held object, and the gripper: up, over the basket, down, open."""
    offset = (basket.center - target.center)[:2]
    distance = float(np.linalg.norm(offset))
    height = target.top - target.center[2]
    bottom = target.center[2] - height - floor
    high = CARRY_CLEARANCE + height
    inside = np.clip((0.05 - distance) / 0.03, 0.0, 1.0)
    center_height = high + inside * (RELEASE_HEIGHT - high)
    # Sideways only when the lower end is clear of what stands around, fully at travelling height or over the basket.
    clear = np.clip((bottom - 0.05) / (CARRY_CLEARANCE - 0.02 - 0.05), 0.0, 1.0)
    goal = hand.position + np.append(offset * max(clear, inside), center_height + floor - target.center[2])
    arrived = distance < 0.03 and target.center[2] - floor < RELEASE_HEIGHT + 0.01
    return goal, OPEN if arrived else CLOSE


def _leave(hand: Hand, target: Box, floor: float) -> Float[np.ndarray, "3"]:
    """Where the hand goes once the object is let go over the basket: up when it has fallen out of the fingers.

    A carton's roof can catch on a finger pad: as long as it has not fallen, the hand sinks, which sets it down.
    """
    fallen = target.top < hand.position[2]
    return hand.position + np.array([0.0, 0.0, HOVER + 0.05 + floor - hand.position[2] if fallen else -0.02])
