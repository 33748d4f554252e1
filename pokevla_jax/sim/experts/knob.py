"""Turning a stove's knob by its ridge."""

import mujoco
import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.experts.grasps import Grasp
from pokevla_jax.sim.experts.grasps import approach
from pokevla_jax.sim.experts.hand import CLOSE
from pokevla_jax.sim.experts.hand import downward
from pokevla_jax.sim.experts.hand import move
from pokevla_jax.sim.experts.hand import read_hand
from pokevla_jax.sim.experts.obstacles import Obstacles
from pokevla_jax.typing import Float

# Heights above the knob's foot: of the grip site that holds the ridge, and of the ridge's top.
HEIGHT, TOP = 0.030, 0.050
# How far ahead of itself the hand aims while it turns, radians, and how it travels over what stands around.
TWIST, CLEARANCE = 0.5, 0.04


class KnobExpert:
    """Turns the knob of ``stove`` on, counter-clockwise."""

    def __init__(self, environment: LiberoEnvironment, stove: str):
        self._environment = environment
        model = environment.model
        root = environment.sim_env.obj_body_id[stove]
        (self._body,) = [b for b in range(model.nbody) if model.body_jntnum[b] and _is_within(model, b, root)]

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state."""
        data = self._environment.data
        knob, rotation = data.xpos[self._body], data.xmat[self._body].reshape(3, 3)
        hand = read_hand(self._environment, [self._body])
        position = knob + [0.0, 0.0, HEIGHT]
        if hand.holding:
            return move(hand, position, downward(hand.yaw + (0.0 if hand.closing else TWIST)), CLOSE)
        # The ridge runs along the knob's y axis.
        grasp = Grasp.at(position, rotation[:, 0], 0.010)
        ahead = Obstacles(self._environment, [self._body]).top_along(hand.position[:2], position[:2], 0.10)
        goal, gripper = approach(hand, grasp, hand.yaw, float(knob[2]) + TOP, ahead + CLEARANCE)
        return move(hand, goal, downward(grasp.yaw), gripper)


def _is_within(model: mujoco.MjModel, body: int, root: int) -> bool:
    while body and body != root:
        body = int(model.body_parentid[body])
    return body == root
