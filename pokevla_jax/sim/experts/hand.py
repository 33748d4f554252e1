"""The gripper as the experts see it, and the action that brings it somewhere."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.typing import Float

OPEN, CLOSE = -1.0, 1.0
# Gains: an action of 1 moves the hand by about 15 mm and 0.15 rad in one control step (measured).
POSITION_GAIN = 15.0
ROTATION_GAIN = 1.5
# Half the distance between the opened fingers.
FINGER_OPENING = 0.0385
# The palm is a bar over the fingers: half its length and width, and the height of its underside above the grip site.
PALM_HALF = (0.106, 0.032)
PALM_ABOVE_SITE = 0.031
# Fingers that move faster than this (m/s) have not closed yet.
CLOSING_SPEED = 0.01
# Fingers that are closer together than this hold what one of them touches: contacts of thin walls come and go.
THIN_OPENING = 0.2


@dataclass(frozen=True)
class Hand:
    """The gripper now: grip site, orientation (x along the fingers' motion, z forward), opening in [0, 1], grip.

    Attributes:
        holding: both fingers touch what is to be held.
        pinching: they hold it, or one touches it and they are all but closed.
        closing: the fingers are moving towards each other.
    """

    position: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    opening: float
    holding: bool
    pinching: bool
    closing: bool

    @property
    def yaw(self) -> float:
        """Angle of the fingers' motion from world y, for a hand that points down."""
        return float(np.arctan2(-self.rotation[0, 0], self.rotation[1, 0]))


def read_hand(environment: LiberoEnvironment, held: Collection[int]) -> Hand:
    """The hand; ``held`` are the bodies of which the hand may hold one."""
    model, data = environment.model, environment.data
    robot = environment.sim_env.robots[0]
    width = np.abs(data.qpos[robot._ref_gripper_joint_pos_indexes]).sum()
    # A finger's pad is a child body of its own.
    bodies = model.geom_bodyid[data.contact.geom[: data.ncon]]
    parents = model.body_parentid[bodies]
    with_target = np.isin(bodies, list(held)).any(1)
    touching = [
        bool((((bodies == finger) | (parents == finger)).any(1) & with_target).any())
        for finger in (model.body(f"gripper0_{side}finger").id for side in ("left", "right"))
    ]
    # One finger's joint runs from 40 mm to 0, the other's from -40 mm to 0.
    first, second = data.qvel[robot._ref_gripper_joint_vel_indexes]
    opening = float(np.clip(width / 0.08, 0.0, 1.0))
    return Hand(
        position=data.site_xpos[robot.eef_site_id].copy(),
        rotation=data.site_xmat[robot.eef_site_id].reshape(3, 3).copy(),
        opening=opening,
        holding=all(touching),
        pinching=all(touching) or (any(touching) and opening < THIN_OPENING),
        closing=bool(max(-first, second) > CLOSING_SPEED),
    )


def move(
    hand: Hand, goal: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"], gripper: float
) -> Float[np.ndarray, "7"]:
    """The action, in [-1, 1], that brings the grip site to ``goal`` and the hand to ``rotation``."""
    translation = POSITION_GAIN * (goal - hand.position)
    turn = ROTATION_GAIN * rotation_vector(rotation @ hand.rotation.T)
    # Height has its own limit, so that a long way sideways does not starve it.
    motion = [limit(translation[:2]), np.clip(translation[2:], -1.0, 1.0), limit(turn)]
    return np.concatenate([*motion, [gripper]]).astype(np.float32)


def downward(yaw: float) -> Float[np.ndarray, "3 3"]:
    """The grip site's orientation, pointing down, with its x axis (the fingers' motion) at ``yaw`` from world y."""
    s, c = np.sin(yaw), np.cos(yaw)
    return np.array([[-s, c, 0.0], [c, s, 0.0], [0.0, 0.0, -1.0]])


def rotation_vector(rotation: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3"]:
    """Axis times angle of a rotation matrix, for angles below half a turn."""
    axis = 0.5 * np.array(
        [rotation[2, 1] - rotation[1, 2], rotation[0, 2] - rotation[2, 0], rotation[1, 0] - rotation[0, 1]]
    )
    sine = np.linalg.norm(axis)
    if sine < 1e-9:
        return axis
    return axis / sine * np.arctan2(sine, 0.5 * (np.trace(rotation) - 1.0))


def limit(action: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The action shortened to length 1; keeping its direction makes paths straight."""
    return action / max(1.0, float(np.linalg.norm(action)))
