"""Camera viewpoints: where LIBERO-Plus puts the agent view's camera. The wrist camera and the field of view stay."""

import numpy as np
from scipy.spatial.transform import Rotation

from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.sim.plus.names import View
from pokevla_jax.typing import Float

Position = Float[np.ndarray, "3"]
Quaternion = Float[np.ndarray, "4"]

PIVOT = np.array([0.0, 0.0, 0.8])
"""The point over the table that cameras turn around, metres; the same in scenes whose table is lower."""

_HIGH = (0.6380177736282349, 0.3048497438430786, 0.30484986305236816, 0.6380177736282349)
_LOW = (0.6182166934013367, 0.3432307541370392, 0.3432314395904541, 0.6182177066802979)
AGENTVIEW = {
    "libero_floor_manipulation": ((0.8965773716836134, 5.216182733499864e-07, 0.65), _LOW),
    "libero_tabletop_manipulation": ((0.6586131746834771, 0.0, 1.6103500240372423), _HIGH),
    "libero_kitchen_tabletop_manipulation": ((0.6586131746834771, 0.0, 1.6103500240372423), _HIGH),
    "libero_living_room_tabletop_manipulation": ((0.6065773716836134, 0.0, 0.96), _LOW),
    "libero_study_tabletop_manipulation": ((0.4586131746834771, 0.0, 1.6103500240372423), _HIGH),
}
"""Scene class -> LIBERO's agent view: position (metres) and quaternion (wxyz), as its scene classes set them."""


def agentview_pose(problem: str, view: View) -> tuple[Position, Quaternion]:
    """Position (metres) and quaternion (wxyz) of the moved agent view.

    Steps, order and the rounding to four decimals after each are the benchmark's, which also rounds a camera that it
    does not move: its unperturbed camera is not quite LIBERO's.

    Args:
        problem: the scene class, as a BDDL file names it; a variant's name begins with its stock class's.
        view: the movement.

    Raises:
        SimulationError: for a scene class without an agent view.
    """
    pose = next((pose for name, pose in AGENTVIEW.items() if problem.lower().startswith(name)), None)
    if pose is None:
        raise SimulationError(f"Unknown scene class {problem!r}; known: {', '.join(AGENTVIEW)}")
    position, quaternion = np.array(pose[0]), np.array(pose[1])
    if view.elevation:
        up = _about_y(view.elevation)
        position, quaternion = _rounded(up.apply(position - PIVOT) + PIVOT), _rounded(_turned(up, quaternion))
    around = _about_z(view.azimuth)
    position, quaternion = _rounded(around.apply(position)), _rounded(_turned(around, quaternion))
    if view.distance != 100:
        position = _rounded(PIVOT + (position - PIVOT) * (view.distance / 100))
    if view.yaw:
        quaternion = _rounded(_turned(_about_z(view.yaw), quaternion))
    if view.pitch:
        quaternion = _rounded(_turned(_about_y(view.pitch), quaternion))
    return position, quaternion


def _about_z(degrees: float) -> Rotation:
    return Rotation.from_euler("z", degrees, degrees=True)


def _about_y(degrees: float) -> Rotation:
    """Positive angles lift the camera: from the x axis towards the z axis."""
    return Rotation.from_rotvec(np.radians(-degrees) * np.array([0, 1, 0]))


def _turned(rotation: Rotation, quaternion: Quaternion) -> Quaternion:
    """``rotation`` after the wxyz ``quaternion``."""
    return (rotation * Rotation.from_quat(np.roll(quaternion, -1))).as_quat()[[3, 0, 1, 2]]


def _rounded(values: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """Four decimals, by Python's rounding as in the benchmark (numpy's differs in rare last digits)."""
    return np.array([round(value, 4) for value in values.tolist()])
