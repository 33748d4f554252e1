"""Picking something up and setting it down on an object, on a surface or in an open drawer."""

from dataclasses import dataclass

import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.sim.experts.grasps import MAX_HALF_WIDTH
from pokevla_jax.sim.experts.grasps import Grasp
from pokevla_jax.sim.experts.grasps import approach
from pokevla_jax.sim.experts.grasps import box_grasps
from pokevla_jax.sim.experts.grasps import choose_grasp
from pokevla_jax.sim.experts.grasps import find_rim
from pokevla_jax.sim.experts.grasps import rim_grasps
from pokevla_jax.sim.experts.hand import CLOSE
from pokevla_jax.sim.experts.hand import OPEN
from pokevla_jax.sim.experts.hand import Hand
from pokevla_jax.sim.experts.hand import downward
from pokevla_jax.sim.experts.hand import move
from pokevla_jax.sim.experts.hand import read_hand
from pokevla_jax.sim.experts.obstacles import Obstacles
from pokevla_jax.sim.geometry import collision_box
from pokevla_jax.sim.geometry import solid_points
from pokevla_jax.typing import Float

# What is carried passes this far above what it passes over; open fingers, whose tips are 9 mm below the grip site, too.
CLEARANCE = 0.025
# Width of the corridor that must be clear: half the palm's length.
CORRIDOR = 0.10
# Gap that is left under the object when the fingers open.
DROP = 0.004
# Once the hand has risen this far above what it let go of without success, it takes hold of it again.
RETRY_HEIGHT = 0.12


@dataclass(frozen=True)
class Place:
    """Where the target's origin should come to stand, and the height of what it will stand on."""

    position: Float[np.ndarray, "2"]
    height: float


class PickPlaceExpert:
    """Brings ``target`` to ``destination``: an object or a region that the benchmark's goal names.

    Bowls and cups that are too wide for the gripper are taken by the rim, other things across their narrower side.
    """

    def __init__(self, environment: LiberoEnvironment, target: str, destination: str):
        self._environment = environment
        self._body = environment.sim_env.obj_body_id[target]
        self._destination = destination
        self._box = collision_box(environment.model, self._body)
        self._points = solid_points(environment.model, self._body)
        self._base = environment.data.body(environment.sim_env.robots[0].robot_model.root_body).xpos[:2].copy()
        wide = np.sort(self._box.half)[1] > MAX_HALF_WIDTH
        self._rim = find_rim(self._points) if wide else None

    def act(self) -> Float[np.ndarray, "7"]:
        """The action for the present state."""
        environment = self._environment
        origin, rotation = environment.data.xpos[self._body], environment.data.xmat[self._body].reshape(3, 3)
        points = origin + self._points @ rotation.T
        bottom, top = float(points[:, 2].min()), float(points[:, 2].max())
        obstacles = Obstacles(environment, [self._body])
        place = self.place(obstacles)
        way = place.position - origin[:2]
        hand = read_hand(environment, [self._body])
        yaw = hand.yaw
        out = obstacles.way_out(points.min(0), points.max(0)) if hand.pinching else None
        if hand.pinching and hand.closing:
            goal, gripper = hand.position, CLOSE
        elif out is not None:
            goal, gripper = hand.position + out + 0.02 * np.sign(out), CLOSE
        elif hand.pinching:
            goal, gripper = _carry(hand, way, bottom, place, obstacles, origin[:2])
        elif np.linalg.norm(way) < 0.03 and bottom < place.height + 0.03 and hand.position[2] < top + RETRY_HEIGHT:
            # Let go, and not a success yet: out of the way.
            goal, gripper = hand.position + [0.0, 0.0, 0.05], OPEN
        elif not (grasps := self._grasps(bottom)):
            # Tipped over, so that no side of it fits between the fingers: it may roll on, or the episode is lost.
            goal, gripper = hand.position + [0.0, 0.0, 0.05], OPEN
        else:
            carried = np.append(way, place.height - bottom)
            grasp = choose_grasp(grasps, hand, obstacles, self._base, carried)
            ahead = obstacles.top_along(hand.position[:2], grasp.position[:2], CORRIDOR)
            hover = max(ahead + CLEARANCE + 0.01, top + 0.05)
            goal, gripper = approach(hand, grasp, yaw, top, hover)
            yaw = grasp.yaw
        return move(hand, goal, downward(yaw), gripper)

    def _grasps(self, bottom: float) -> list[Grasp]:
        """What the hand could close around now, if anything."""
        data = self._environment.data
        position, rotation = data.xpos[self._body], data.xmat[self._body].reshape(3, 3)
        if self._rim is not None:
            return rim_grasps(self._rim, position, rotation)
        return box_grasps(self._box.placed(position, rotation), bottom)

    def place(self, obstacles: Obstacles) -> Place:
        """Where the target should go, now."""
        environment = self._environment
        if self._destination in environment.sim_env.obj_body_id:
            body = environment.sim_env.obj_body_id[self._destination]
            points = (
                environment.data.xpos[body]
                + solid_points(environment.model, body) @ environment.data.xmat[body].reshape(3, 3).T
            )
            return Place(environment.data.xpos[body][:2].copy(), float(points[:, 2].max()))
        return region_place(environment, self._destination, obstacles)


def region_place(environment: LiberoEnvironment, name: str, obstacles: Obstacles) -> Place:
    """The middle of those places on the surfaces around a region that the benchmark counts as on or in it."""
    region, site = environment.sim_env.object_sites_dict[name], environment.data.site(name)
    center, rotation = site.xpos, site.xmat.reshape(3, 3)
    counts = region.in_box if region.joints else region.under
    steps = np.linspace(-0.12, 0.12, 17)
    places = center[:2] + np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    heights = obstacles.height_at(places)
    valid = [counts(center, rotation, np.append(p, h + 0.001)) for p, h in zip(places, heights, strict=True)]
    places, heights = places[valid], heights[valid]
    best = int(np.linalg.norm(places - places.mean(0), axis=1).argmin())
    return Place(places[best], float(heights[best]))


def _carry(
    hand: Hand,
    way: Float[np.ndarray, "2"],
    bottom: float,
    place: Place,
    obstacles: Obstacles,
    origin: Float[np.ndarray, "2"],
) -> tuple[Float[np.ndarray, "3"], float]:
    """Where the hand takes what it holds, and the gripper: up, across, down, open."""
    distance = float(np.linalg.norm(way))
    release = place.height + DROP
    high = max(obstacles.top_along(origin, place.position, CORRIDOR) + CLEARANCE, release)
    inside = np.clip((0.045 - distance) / 0.025, 0.0, 1.0)
    height = high + inside * (release - high)
    # Sideways only when the lower end is clear of what stands around.
    clear = np.clip((bottom - (high - CLEARANCE)) / (0.8 * CLEARANCE), 0.0, 1.0)
    goal = hand.position + np.append(way * max(clear, inside), height - bottom)
    arrived = distance < 0.02 and bottom < release + 0.004
    return goal, OPEN if arrived else CLOSE
