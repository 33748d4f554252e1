"""Where to take hold of things from above, and the way down to there."""

from dataclasses import dataclass

import numpy as np

from pokevla_jax.sim.experts.hand import CLOSE
from pokevla_jax.sim.experts.hand import FINGER_OPENING
from pokevla_jax.sim.experts.hand import OPEN
from pokevla_jax.sim.experts.hand import Hand
from pokevla_jax.sim.experts.hand import downward
from pokevla_jax.sim.experts.obstacles import HAND_BALLS
from pokevla_jax.sim.experts.obstacles import HAND_RADII
from pokevla_jax.sim.experts.obstacles import Obstacles
from pokevla_jax.sim.geometry import Box
from pokevla_jax.typing import Float

# Half the width that fits between the opened fingers with a millimetre or two to spare.
MAX_HALF_WIDTH = 0.037
# The palm is 31 mm above the grip site and the finger tips 9 mm below it: an object's top may be this far above the
# site, and the site this far above the floor.
TOP_ABOVE_SITE = 0.029
SITE_ABOVE_FLOOR = 0.0125
# A rim is held this far below its edge.
RIM_DEPTH = 0.012
# Directions around a rim, and how far inside the rim the hand may stand: the outer finger then needs less room.
RIM_DIRECTIONS = 12
RIM_SHIFTS = (0.0, 0.012, 0.024)
# Room that a hand needs and room that it should have, and what lacking a metre of either costs beside a radian of
# turning.
ROOM, COMFORT = 0.004, 0.030
ROOM_COST, COMFORT_COST = 100.0, 20.0
# Distance from the robot's base up to which the hand moves freely, and what a metre beyond it costs.
REACH = 0.70
REACH_COST = 8.0
# What a metre off the best place on the object costs.
OFFSET_COST = 8.0


@dataclass(frozen=True)
class Grasp:
    """Where the grip site and how the fingers stand when they close.

    Attributes:
        along: horizontal direction of the fingers' motion; ``yaw`` is its angle from world y.
        across: horizontal direction at a right angle to it.
        slack: how far the hand may be off along the fingers' motion, metres.
        offset: how far the grasp is from the best place on the object, metres.
    """

    position: Float[np.ndarray, "3"]
    yaw: float
    along: Float[np.ndarray, "3"]
    across: Float[np.ndarray, "3"]
    slack: float
    offset: float = 0.0

    @classmethod
    def at(
        cls, position: Float[np.ndarray, "3"], axis: Float[np.ndarray, "3"], slack: float, offset: float = 0.0
    ) -> "Grasp":
        """A grasp whose fingers move along ``axis``, either way."""
        # Both fingers are alike, half a turn is the same grasp; the wrist has more room on the positive side.
        yaw = float((np.arctan2(-axis[0], axis[1]) + 1.27) % np.pi - 1.27)
        along, across = np.array([-np.sin(yaw), np.cos(yaw), 0.0]), np.array([np.cos(yaw), np.sin(yaw), 0.0])
        return cls(position, yaw, along, across, slack, offset)


def grasp_height(target: Box, floor: float = 0.0) -> float:
    """Height of the grip site when the fingers close: as low as the palm and the floor allow."""
    return max(target.top - TOP_ABOVE_SITE, floor + SITE_ABOVE_FLOOR)


def box_slack(target: Box, along: Float[np.ndarray, "3"]) -> float:
    """How far off its middle the opened fingers can pass the target."""
    return float(np.clip(FINGER_OPENING - target.extent(along), 0.003, 0.012))


@dataclass(frozen=True)
class Rim:
    """The upper edge of a bowl, in the coordinates of its body: a circle about the body's z axis."""

    radius: float
    height: float


def find_rim(points: Float[np.ndarray, "n 3"]) -> Rim:
    """The rim of an object whose colliding parts surround the z axis of its body; ``points``: its ``solid_points``."""
    top = points[:, 2].max()
    edge = points[points[:, 2] > top - 0.01]
    return Rim(float(np.median(np.linalg.norm(edge[:, :2], axis=1))), float(top))


def box_grasps(target: Box, floor: float) -> list[Grasp]:
    """Grasps across the sides of a box that fit between the fingers, in its middle or 2 cm off it."""
    grasps = []
    for axis, half in zip(target.rotation.T, target.half, strict=True):
        if abs(axis[2]) > 0.6 or half > MAX_HALF_WIDTH:
            continue
        middle = np.append(target.center[:2], grasp_height(target, floor))
        centred = Grasp.at(middle, axis, 0.0)
        reach = min(0.02, max(target.extent(centred.across) - 0.015, 0.0))
        slack = box_slack(target, centred.along)
        grasps += [Grasp.at(middle + s * centred.across, axis, slack, abs(s)) for s in (0.0, reach, -reach)]
    return grasps


def rim_grasps(rim: Rim, position: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"]) -> list[Grasp]:
    """Grasps with one finger inside and one outside a rim, all around it."""
    grasps = []
    for angle in 2 * np.pi * np.arange(RIM_DIRECTIONS) / RIM_DIRECTIONS:
        edge = rotation @ [rim.radius * np.cos(angle), rim.radius * np.sin(angle), rim.height]
        outward = np.append(edge[:2] - (rotation @ [0.0, 0.0, rim.height])[:2], 0.0)
        outward /= np.linalg.norm(outward)
        top = position + edge
        top[2] -= RIM_DEPTH
        grasps += [Grasp.at(top - shift * outward, outward, 0.006, shift) for shift in RIM_SHIFTS]
    return grasps


def choose_grasp(
    grasps: list[Grasp],
    hand: Hand,
    obstacles: Obstacles,
    base: Float[np.ndarray, "2"],
    carried: Float[np.ndarray, "3"],
) -> Grasp:
    """The grasp that leaves the hand room, turns it the least and is nearest to where it is.

    Args:
        grasps: at least one.
        hand: the hand now; being near makes a choice stable from one step to the next.
        obstacles: what the hand should keep clear of.
        base: where the robot stands.
        carried: how far the object will be moved; the hand should have room and reach there too.
    """
    positions = np.array([grasp.position for grasp in grasps])
    balls = np.stack([HAND_BALLS @ downward(grasp.yaw).T for grasp in grasps]) + positions[:, None]
    yaws = np.array([grasp.yaw for grasp in grasps])
    cost = 0.25 * np.abs(yaws) + 0.25 * np.abs(yaws - hand.yaw)
    cost += np.linalg.norm(positions[:, :2] - hand.position[:2], axis=1)
    cost += np.array([grasp.offset for grasp in grasps]) * OFFSET_COST
    # Room while it closes, on its way down, and where it lets go.
    up = np.array([0.0, 0.0, 0.06])
    for moved, weight in ((0.0 * up, 1.0), (up, 0.5), (2.0 * up, 0.5), (carried, 0.5)):
        room = obstacles.room(balls + moved, HAND_RADII)
        lack = ROOM_COST * np.clip(ROOM - room, 0.0, 0.04) + COMFORT_COST * np.clip(COMFORT - room, 0.0, COMFORT)
        beyond = np.maximum(np.linalg.norm((positions + moved)[:, :2] - base, axis=1) - REACH, 0.0)
        cost += weight * (lack + REACH_COST * beyond)
    return grasps[int(np.argmin(cost))]


def approach(hand: Hand, grasp: Grasp, yaw: float, top: float, hover: float) -> tuple[Float[np.ndarray, "3"], float]:
    """Where a hand at ``yaw`` goes to grasp, and the gripper: down a funnel onto the object, then close.

    Args:
        hand: the hand now.
        grasp: where it closes.
        yaw: the hand's.
        top: height of the object's highest point.
        hover: grip site's height while travelling with open fingers.
    """
    offset = (grasp.position - hand.position)[:2]
    # Along the fingers' motion the object must fit between them; across it a centimetre does not matter.
    turn = abs((grasp.yaw - yaw + np.pi) % (2 * np.pi) - np.pi)
    miss = np.linalg.norm(
        [
            max(abs(offset @ grasp.along[:2]) - grasp.slack, 0.0),
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
        funnel = max(funnel, top + 0.03 - grasp.position[2])
    goal = np.append(grasp.position[:2], min(grasp.position[2] + funnel, hover))
    # From between the objects, first rise: sideways speed grows with the height above the funnel.
    below = goal[2] - hand.position[2]
    goal[:2] = hand.position[:2] + offset * np.clip(1.0 - below / 0.08, 0.0, 1.0)
    return goal, OPEN
