"""Opening a drawer by its handle, with the hand tilted towards the cabinet's front."""

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.experts.hand import CLOSE
from pokevla_jax.sim.experts.hand import OPEN
from pokevla_jax.sim.experts.hand import Hand
from pokevla_jax.sim.experts.hand import move
from pokevla_jax.sim.experts.hand import read_hand
from pokevla_jax.sim.experts.hand import rotation_vector
from pokevla_jax.sim.experts.obstacles import Obstacles
from pokevla_jax.sim.experts.pick_place import PickPlaceExpert
from pokevla_jax.typing import Float

# Angle of the hand's forward direction from straight down: level enough for the upper finger to pass between handle and
# front, steep enough for the palm to clear the table.
TILT = np.deg2rad(68.0)
# Where the grip site stands before it goes in, and when the fingers close: in front of the middle of the handle.
STAND_OFF, INSERTED = 0.10, 0.004
# The corridor that the tilted hand passes, and how far its palm hangs below the grip site, with some room.
CORRIDOR, PALM_BELOW = 0.08, 0.125
# How far ahead of itself the hand aims while pulling: 0.75 of full speed.
PULL = 0.05
# Part of the drawer's way to which it is pulled for putting something in (further out, it hangs over things on the
# table), and which is still enough when it was pushed back a little since.
OPEN_SHARE, ENOUGH_SHARE = 0.8, 0.65


class DrawerExpert:
    """Pulls the drawer that holds the region ``site`` open."""

    def __init__(self, environment: LiberoEnvironment, site: str):
        self._environment = environment
        model, data = environment.model, environment.data
        self._body = int(model.site(site).bodyid[0])
        self._joint = int(model.body_jntadr[self._body])
        self._geoms = np.flatnonzero((model.geom_bodyid == self._body) & (model.geom_group == 0))
        # Drawers open to the negative side of their joint.
        self.outward = -data.xaxis[self._joint].copy()

    @property
    def share(self) -> float:
        """How far the drawer is open, as a part of its way."""
        model, data = self._environment.model, self._environment.data
        return float(data.qpos[model.jnt_qposadr[self._joint]] / model.jnt_range[self._joint, 0])

    @property
    def handle(self) -> Float[np.ndarray, "3"]:
        """The middle of the bar that stands out the most."""
        positions = self._environment.data.geom_xpos[self._geoms]
        return positions[(positions @ self.outward).argmax()]

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state."""
        hand, handle = read_hand(self._environment, [self._body]), self.handle
        rotation = _tilted(hand, self.outward)
        offset = handle - hand.position
        ahead = float(-offset @ self.outward)
        beside = offset + ahead * self.outward
        if hand.holding and not hand.closing:
            return move(hand, hand.position + PULL * self.outward + 0.3 * beside, rotation, CLOSE)
        turn = float(np.linalg.norm(rotation_vector(rotation @ hand.rotation.T)))
        miss = max(float(np.linalg.norm(beside)) - 0.006, 0.0) + 0.05 * max(turn - 0.12, 0.0)
        if miss < 0.004 + 0.01 * (1.0 - hand.opening) and ahead < INSERTED + 0.006:
            return move(hand, handle + INSERTED * self.outward, rotation, CLOSE)
        distance = min(INSERTED + 6.0 * miss, STAND_OFF)
        if hand.opening < 0.9:
            distance = STAND_OFF
        goal = handle + distance * self.outward
        aside = beside - [0.0, 0.0, beside[2]]
        if np.linalg.norm(aside) > 0.03:
            # In front of the handle first, above what stands on the table there: the palm hangs below the fingers.
            obstacles = Obstacles(self._environment)
            passed = obstacles.top_along(hand.position[:2], goal[:2], CORRIDOR) + PALM_BELOW
            goal[2] = max(goal[2], passed)
            if hand.position[2] < passed - 0.03:
                goal[:2] = hand.position[:2]
        return move(hand, goal, rotation, OPEN)

    def retreat(self) -> Float[np.ndarray, "7"] | None:
        """The action that takes a tilted hand off the handle, or None when it is away or points down already."""
        hand = read_hand(self._environment, [self._body])
        near = np.linalg.norm(hand.position - self.handle) < STAND_OFF
        if points_down(hand) or not near:
            return None
        # Open first: fingers that still hold would pull the drawer further.
        back = 0.05 if hand.opening > 0.6 else 0.0
        return move(hand, hand.position - back * hand.rotation[:, 2], hand.rotation, OPEN)


def points_down(hand: Hand) -> bool:
    """Whether the hand is within 25 degrees of pointing straight down."""
    return bool(hand.rotation[2, 2] < -0.9)


def _tilted(hand: Hand, outward: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3 3"]:
    """The hand's orientation at a handle: forward against ``outward`` and down, fingers one above the other."""
    up = np.array([0.0, 0.0, 1.0])
    forward = -np.sin(TILT) * outward - np.cos(TILT) * up
    along = np.sin(TILT) * up - np.cos(TILT) * outward
    # Both fingers are alike: the half turn that is nearer.
    if along @ hand.rotation[:, 0] < 0.0:
        along = -along
    return np.stack([along, np.cross(forward, along), forward], axis=1)


class FillDrawerExpert:
    """Opens the drawer that holds the region ``site`` and puts ``target`` inside."""

    def __init__(self, environment: LiberoEnvironment, target: str, site: str):
        self._environment = environment
        self._drawer = DrawerExpert(environment, site)
        self._fill = PickPlaceExpert(environment, target, site)

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state."""
        down = points_down(read_hand(self._environment, []))
        if self._drawer.share < (ENOUGH_SHARE if down else OPEN_SHARE):
            return self._drawer.act()
        away = self._drawer.retreat()
        return self._fill.act() if away is None else away
