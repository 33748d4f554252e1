"""Bounding boxes of simulated objects, for the expert's grasps and for layouts without collisions."""

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


def collision_box(model: mujoco.MjModel, body: int) -> Box:
    """The box around everything of the object that can collide, in the coordinates of its (only) ``body``."""
    # robosuite's group 0 are the colliding parts; their collision masks may be zero while a layout parks the object.
    geoms = np.flatnonzero((model.geom_bodyid == body) & (model.geom_group == 0))
    signs = np.array(np.meshgrid([-1, 1], [-1, 1], [-1, 1])).reshape(3, -1).T
    corners = []
    for geom in geoms:
        rotation = np.empty(9)
        mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
        local = model.geom_aabb[geom, :3] + signs * model.geom_aabb[geom, 3:]
        corners.append(local @ rotation.reshape(3, 3).T + model.geom_pos[geom])
    low, high = np.min(np.concatenate(corners), 0), np.max(np.concatenate(corners), 0)
    return Box(0.5 * (low + high), 0.5 * (high - low), np.eye(3))
