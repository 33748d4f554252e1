"""Pushing a dish over the table."""

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.experts.grasps import find_rim
from pokevla_jax.sim.experts.grasps import solid_points
from pokevla_jax.sim.experts.hand import CLOSE
from pokevla_jax.sim.experts.hand import Hand
from pokevla_jax.sim.experts.hand import move
from pokevla_jax.sim.experts.hand import read_hand
from pokevla_jax.sim.experts.hand import rotation_vector
from pokevla_jax.sim.experts.obstacles import Obstacles
from pokevla_jax.sim.experts.obstacles import floor_height
from pokevla_jax.typing import Float

# The hand leans over what it pushes, so that the palm keeps off what stands behind. The grip site aims this far above
# the table, and is pushed up a little by what it pushes; from below LOW it may push.
LEAN = np.deg2rad(40.0)
PUSH_HEIGHT, LOW = 0.006, 0.022
# Half the closed fingers' width along the push, how far behind the dish the hand comes down, and how far ahead of
# itself it aims while it pushes.
FINGER_HALF, GAP, LEAD = 0.013, 0.012, 0.04
# Height at which the hand travels above what it passes over.
CLEARANCE = 0.04


class PushExpert:
    """Pushes the round, flat ``target`` over the table onto the region ``site``, with closed fingers."""

    def __init__(self, environment: LiberoEnvironment, target: str, site: str):
        self._environment, self._site = environment, site
        self._body = environment.sim_env.obj_body_id[target]
        self._radius = find_rim(solid_points(environment.model, self._body)).radius

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state."""
        data = self._environment.data
        dish, way = data.xpos[self._body], (data.site(self._site).xpos - data.xpos[self._body])[:2]
        floor = floor_height(self._environment)
        hand = read_hand(self._environment, [self._body])
        direction = way / max(float(np.linalg.norm(way)), 1e-6)
        side = np.array([-direction[1], direction[0]])
        rotation = _leaning(hand, direction)
        turn = float(np.linalg.norm(rotation_vector(rotation @ hand.rotation.T)))
        behind = self._radius + FINGER_HALF
        offset = hand.position[:2] - dish[:2]
        back, beside = float(-offset @ direction), float(offset @ side)
        if hand.position[2] < floor + LOW and abs(beside) < 0.04 and turn < 0.4 and back > behind - 0.03:
            # Beside the line through dish and goal, the dish would slip away: back onto it while pushing.
            ahead = min(LEAD, float(np.linalg.norm(way)) + 0.01) * max(1.0 - abs(beside) / 0.03, 0.2)
            goal = hand.position[:2] + direction * ahead - 1.5 * side * beside
            return move(hand, np.append(goal, floor + PUSH_HEIGHT), rotation, CLOSE)
        start = dish[:2] - direction * (behind + GAP)
        miss = float(np.linalg.norm(start - hand.position[:2])) + 0.05 * max(turn - 0.2, 0.0) + 0.02 * hand.opening
        # Over what stands in between, then down a funnel.
        hover = Obstacles(self._environment).top_along(hand.position[:2], start, 0.10) + CLEARANCE
        height = min(floor + PUSH_HEIGHT + 8.0 * max(miss - 0.010, 0.0), max(hover, floor + 0.08))
        sideways = (start - hand.position[:2]) * np.clip(1.0 - (height - hand.position[2]) / 0.05, 0.0, 1.0)
        return move(hand, np.append(hand.position[:2] + sideways, height), rotation, CLOSE)


def _leaning(hand: Hand, direction: Float[np.ndarray, "2"]) -> Float[np.ndarray, "3 3"]:
    """The orientation of a hand that pushes along the world axis nearest to ``direction``, leaning over what it pushes.

    Its palm, a bar, is then parallel to the front of what stands along the table's edges.
    """
    axis = np.zeros(3)
    nearest = int(np.abs(direction).argmax())
    axis[nearest] = np.sign(direction[nearest])
    forward = -np.sin(LEAN) * axis - np.array([0.0, 0.0, np.cos(LEAN)])
    along = np.array([-axis[1], axis[0], 0.0])
    # Both fingers are alike: the half turn that is nearer.
    if along @ hand.rotation[:, 0] < 0.0:
        along = -along
    return np.stack([along, np.cross(forward, along), forward], axis=1)
