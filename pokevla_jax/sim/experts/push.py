"""Pushing a dish over the table."""

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.experts.grasps import find_rim
from pokevla_jax.sim.experts.grasps import solid_points
from pokevla_jax.sim.experts.hand import OPEN
from pokevla_jax.sim.experts.hand import Hand
from pokevla_jax.sim.experts.hand import move
from pokevla_jax.sim.experts.hand import read_hand
from pokevla_jax.sim.experts.hand import rotation_vector
from pokevla_jax.sim.experts.obstacles import Obstacles
from pokevla_jax.sim.experts.obstacles import floor_height
from pokevla_jax.typing import Float

# The hand leans back from what it pushes, so that the palm passes what stands behind; its grip site is this far above
# the table.
LEAN = np.deg2rad(40.0)
PUSH_HEIGHT = 0.012
# Half the distance between the fingers' middles, and half their width along the push.
FORK_HALF, FINGER_HALF = 0.047, 0.011
# How far behind the dish the hand comes down, and how far ahead of itself it aims while it pushes.
GAP, LEAD = 0.010, 0.04
# Height at which the hand travels above what it passes over.
CLEARANCE = 0.04


class PushExpert:
    """Pushes the round, flat ``target`` over the table onto the region ``site``, with both fingers as a fork."""

    def __init__(self, environment: LiberoEnvironment, target: str, site: str):
        self._environment, self._site = environment, site
        self._body = environment.sim_env.obj_body_id[target]
        points = solid_points(environment.model, self._body)
        self._radius = find_rim(points).radius

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state."""
        data = self._environment.data
        dish, way = data.xpos[self._body], (data.site(self._site).xpos - data.xpos[self._body])[:2]
        floor = floor_height(self._environment)
        hand = read_hand(self._environment, [self._body])
        direction = way / max(float(np.linalg.norm(way)), 1e-6)
        rotation = _leaning(hand, direction)
        turn = float(np.linalg.norm(rotation_vector(rotation @ hand.rotation.T)))
        # Both fingers touch the dish's edge: the middle between them is then this far behind the dish's.
        behind = np.sqrt(max(self._radius**2 - FORK_HALF**2, 0.0)) + FINGER_HALF
        offset = hand.position[:2] - dish[:2]
        back, beside = float(-offset @ direction), float(offset[1] * direction[0] - offset[0] * direction[1])
        side = np.array([-direction[1], direction[0]])
        low = hand.position[2] < floor + PUSH_HEIGHT + 0.01
        if low and abs(beside) < 0.025 and turn < 0.3 and back > behind - 0.025:
            ahead = min(LEAD, float(np.linalg.norm(way)) + 0.01)
            goal = hand.position[:2] + direction * ahead - side * beside
            return move(hand, np.append(goal, floor + PUSH_HEIGHT), rotation, OPEN)
        start = dish[:2] - direction * (behind + GAP)
        miss = float(np.linalg.norm(start - hand.position[:2])) + 0.05 * max(turn - 0.2, 0.0)
        # Over what stands in between, then down a funnel.
        hover = Obstacles(self._environment).top_along(hand.position[:2], start, 0.10) + CLEARANCE
        height = min(floor + PUSH_HEIGHT + 8.0 * max(miss - 0.008, 0.0), max(hover, floor + 0.08))
        sideways = (start - hand.position[:2]) * np.clip(1.0 - (height - hand.position[2]) / 0.05, 0.0, 1.0)
        return move(hand, np.append(hand.position[:2] + sideways, height), rotation, OPEN)


def _leaning(hand: Hand, direction: Float[np.ndarray, "2"]) -> Float[np.ndarray, "3 3"]:
    """The orientation of a hand that pushes in ``direction``: fingers side by side, leaning over what they push."""
    forward = np.append(-np.sin(LEAN) * direction, -np.cos(LEAN))
    along = np.array([-direction[1], direction[0], 0.0])
    # Both fingers are alike: the half turn that is nearer.
    if along @ hand.rotation[:, 0] < 0.0:
        along = -along
    return np.stack([along, np.cross(forward, along), forward], axis=1)
