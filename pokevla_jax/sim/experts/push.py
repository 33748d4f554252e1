"""Sliding a dish over the table."""

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.experts.hand import CLOSE
from pokevla_jax.sim.experts.hand import downward
from pokevla_jax.sim.experts.hand import move
from pokevla_jax.sim.experts.hand import read_hand
from pokevla_jax.sim.experts.obstacles import Obstacles
from pokevla_jax.sim.experts.obstacles import floor_height
from pokevla_jax.typing import Float

# Heights of the grip site above the table: aimed at while sliding, a centimetre into the dish, which presses on it; and
# up to which the closed fingers stand in the dish.
PRESS, LOW = 0.002, 0.032
# How far from the dish's middle the fingers stand in it, how far ahead of the middle they come down, and how far ahead
# of itself the hand aims while it slides.
INSIDE, START, LEAD = 0.055, 0.020, 0.04
# Height at which the hand travels above what it passes over.
CLEARANCE = 0.04


class PushExpert:
    """Slides the flat ``target`` over the table onto the region ``site``, with closed fingers inside its rim.

    They press lightly and lean against the inside of the rim that goes ahead: a dish that is towed does not slip away
    to a side, and no room is needed behind it.
    """

    def __init__(self, environment: LiberoEnvironment, target: str, site: str):
        self._environment, self._site = environment, site
        self._body = environment.sim_env.obj_body_id[target]

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state."""
        data = self._environment.data
        dish, way = data.xpos[self._body], (data.site(self._site).xpos - data.xpos[self._body])[:2]
        distance, floor = float(np.linalg.norm(way)), floor_height(self._environment)
        direction = way / max(distance, 1e-6)
        hand = read_hand(self._environment, [self._body])
        here = hand.position[:2]
        if hand.position[2] < floor + LOW and np.linalg.norm(here - dish[:2]) < INSIDE:
            goal = here + direction * min(LEAD, distance + 0.01)
            return move(hand, np.append(goal, floor + PRESS), downward(0.0), CLOSE)
        start = dish[:2] + START * direction
        miss = float(np.linalg.norm(start - here)) + 0.02 * hand.opening
        # Over what stands in between, then down a funnel.
        hover = Obstacles(self._environment).top_along(here, start, 0.10) + CLEARANCE
        height = min(floor + PRESS + 8.0 * max(miss - 0.012, 0.0), max(hover, floor + 0.08))
        sideways = (start - here) * np.clip(1.0 - (height - hand.position[2]) / 0.05, 0.0, 1.0)
        return move(hand, np.append(here + sideways, height), downward(0.0), CLOSE)
