"""What stands around, as boxes: room for a hand, heights to pass over, surfaces to put things on."""

from collections.abc import Collection

import mujoco
import numpy as np

from pokevla_jax.sim.environment import LiberoEnvironment
from pokevla_jax.typing import Float

# The open hand as balls: centres in the frame of its grip site (x along the fingers' motion, z forward) and radii,
# metres. Three for each finger, two rows for the palm, two for the wrist, which meets what hangs over.
_FINGERS = [(s * x, 0.0, z, r) for s in (-1, 1) for x, z, r in ((0.047, 0.0, 0.010), (0.052, -0.02, 0.013))]
_PALM = [(x, 0.0, z, 0.021) for x in (-0.085, -0.056, -0.028, 0.0, 0.028, 0.056, 0.085) for z in (-0.053, -0.085)]
_WRIST = [(0.0, 0.0, z, 0.05) for z in (-0.13, -0.18)]
_BALLS = np.array(_FINGERS + _PALM + _WRIST)
# What hangs over less than this of a thing's corners does not hold it down: round things have no corners, and a bowl
# against the front of its drawer can be drawn no further.
OVERHANG = 0.015
HAND_BALLS, HAND_RADII = _BALLS[:, :3], _BALLS[:, 3]


def floor_height(environment: LiberoEnvironment) -> float:
    """Height of what the scene's objects stand on: the table's top, or the floor at 0 (whose offset is negative)."""
    return max(float(environment.sim_env.workspace_offset[2]), 0.0)


class Obstacles:
    """Everything that can collide, but the robot and the given bodies, as oriented boxes in the world.

    Args:
        environment: the scene, at the present moment.
        ignore: bodies that do not count.
    """

    def __init__(self, environment: LiberoEnvironment, ignore: Collection[int] = ()):
        model, data = environment.model, environment.data
        robot = model.body_rootid[model.body(environment.sim_env.robots[0].robot_model.root_body).id]
        solid = (model.geom_group == 0) & ((model.geom_contype | model.geom_conaffinity) > 0)
        solid &= (model.geom_type != mujoco.mjtGeom.mjGEOM_PLANE) & (model.body_rootid[model.geom_bodyid] != robot)
        solid &= ~np.isin(model.geom_bodyid, list(ignore))
        self.rotation = data.geom_xmat[solid].reshape(-1, 3, 3)
        self.half = model.geom_aabb[solid, 3:]
        self.center = data.geom_xpos[solid] + np.einsum("gij,gj->gi", self.rotation, model.geom_aabb[solid, :3])
        # Half sizes of the boxes around them that are aligned with the world.
        self.extent = np.einsum("gij,gj->gi", np.abs(self.rotation), self.half)

    def room(self, balls: Float[np.ndarray, "c n 3"], radii: Float[np.ndarray, " n"]) -> Float[np.ndarray, " c"]:
        """The smallest gap between any of the balls of a case and any box (a lower bound; negative inside), metres."""
        low, high = balls.min((0, 1)) - 0.06, balls.max((0, 1)) + 0.06
        close = ((self.center + self.extent > low) & (self.center - self.extent < high)).all(1)
        if not close.any():
            return np.full(len(balls), np.inf)
        away = balls.reshape(1, -1, 3) - self.center[close, None]
        outside = np.abs(away @ self.rotation[close]) - self.half[close, None]
        gaps = outside.max(-1).min(0).reshape(balls.shape[:2]) - radii
        return gaps.min(1)

    def way_out(self, low: Float[np.ndarray, "3"], high: Float[np.ndarray, "3"]) -> Float[np.ndarray, "3"] | None:
        """The shortest horizontal way of a thing between these corners from under what hangs over it, if anything."""
        low, high = low + [OVERHANG, OVERHANG, 0.0], high - [OVERHANG, OVERHANG, 0.0]
        over = (self.center[:, 2] - self.extent[:, 2] > high[2] - 0.01) & (
            (self.center + self.extent > low) & (self.center - self.extent < high)
        )[:, :2].all(1)
        if not over.any():
            return None
        forward = (self.center + self.extent)[over].max(0)[:2] - low[:2]
        backward = high[:2] - (self.center - self.extent)[over].min(0)[:2]
        ways = [np.array([forward[0], 0.0, 0.0]), np.array([0.0, forward[1], 0.0])]
        ways += [np.array([-backward[0], 0.0, 0.0]), np.array([0.0, -backward[1], 0.0])]
        return min(ways, key=lambda way: np.abs(way).sum())

    def top_along(self, start: Float[np.ndarray, "2"], end: Float[np.ndarray, "2"], width: float) -> float:
        """The highest point within ``width`` of the straight way from ``start`` to ``end``."""
        way = start + np.linspace(0.0, 1.0, 9)[:, None] * (end - start)
        gap = np.maximum(np.abs(way[:, None] - self.center[:, :2]) - self.extent[:, :2], 0.0)
        passed = ((gap**2).sum(-1) < width**2).any(0)
        return float((self.center[passed, 2] + self.extent[passed, 2]).max(initial=0.0))

    def height_at(self, places: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, " n"]:
        """Where something that falls from the sky at each place would land; 0 where there is nothing."""
        sky = np.concatenate([places, np.full((len(places), 1), 10.0)], 1)
        start = np.einsum("gij,ngi->ngj", self.rotation, sky[:, None] - self.center)
        down = -self.rotation[:, 2]
        down = np.where(np.abs(down) < 1e-9, 1e-9, down)
        near, far = (-np.sign(down) * self.half - start) / down, (np.sign(down) * self.half - start) / down
        enter, leave = near.max(-1), far.min(-1)
        return np.where(enter <= leave, 10.0 - enter, 0.0).max(1, initial=0.0)
