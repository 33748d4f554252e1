"""Bodies of simulated objects and the boxes around them: for labels, grasps, and layouts without collisions."""

from collections.abc import Iterable
from dataclasses import dataclass

import mujoco
import numpy as np

from pokevla_jax.typing import Float


@dataclass(frozen=True)
class Box:
    """A box aligned with an object's body axes (columns of ``rotation``), metres.

    Attributes:
        center: of the box; in body coordinates until ``placed``, then in world coordinates.
        half: half side lengths along the body axes.
        rotation: world from body.
    """

    center: Float[np.ndarray, "3"]
    half: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]

    def placed(self, position: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"]) -> "Box":
        """The box of an object whose body is at this pose; call it on a box in body coordinates."""
        return Box(position + rotation @ self.center, self.half, rotation)

    def extent(self, direction: Float[np.ndarray, "3"]) -> float:
        """Half the box's length along a unit direction of the world."""
        return float(np.abs(direction @ self.rotation) @ self.half)

    @property
    def top(self) -> float:
        """Height of the highest point."""
        return float(self.center[2] + np.abs(self.rotation[2]) @ self.half)


def descendants(model: mujoco.MjModel, roots: Iterable[int]) -> frozenset[int]:
    """Bodies and everything that hangs on them."""
    members = set(roots)
    for body in range(model.nbody):
        # Parents come before children in MuJoCo's numbering.
        if int(model.body_parentid[body]) in members:
            members.add(body)
    return frozenset(members)


def box_corners(
    model: mujoco.MjModel, geom: int, position: Float[np.ndarray, "3"], rotation: Float[np.ndarray, "3 3"]
) -> Float[np.ndarray, "8 3"]:
    """Corners of the box around a geom that stands at this pose, in the frame of the pose."""
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    local = model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]
    return local @ rotation.T + position


def solid_points(model: mujoco.MjModel, body: int) -> Float[np.ndarray, "n 3"]:
    """Corners of the boxes around everything of a body that can collide, in the body's coordinates."""
    corners = []
    # robosuite's group 0 are the colliding parts; their collision masks may be zero while a layout parks the object.
    for geom in np.flatnonzero((model.geom_bodyid == body) & (model.geom_group == 0)):
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        corners.append(box_corners(model, int(geom), model.geom_pos[geom], rotation.reshape(3, 3)))
    return np.concatenate(corners)


def collision_box(model: mujoco.MjModel, body: int) -> Box:
    """The box around everything of the object that can collide, in the coordinates of its (only) ``body``."""
    points = solid_points(model, body)
    low, high = points.min(0), points.max(0)
    return Box(0.5 * (low + high), 0.5 * (high - low), np.eye(3))
