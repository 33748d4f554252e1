"""Robot initial states: the 500 start postures of LIBERO-Plus's arm.

Two readings exist. ``official`` repeats what the benchmark does: its environment is built and reset with the perturbed
posture, and then loading the stored initial state puts the arm back to the stock one; the perturbation survives only in
the controller, whose goal orientation and null-space posture make the arm drift there over the settling steps.
``strict`` puts the arm where the task says. Published numbers measure the first.
"""

import functools
from typing import Literal

import numpy as np

from pokevla_jax.sim.errors import SimulationError
from pokevla_jax.typing import Float

RobotMode = Literal["official", "strict"]
HOME = np.array([0.0, -1.61037389e-01, 0.0, -2.44459747, 0.0, 2.22675220, np.pi / 4])
"""LIBERO's posture of the mounted and of the on-the-ground Panda, radians."""

COUNT = 500
_PER_LEVEL = 100
_SEED = 42


def joint_positions(number: int) -> Float[np.ndarray, "7"]:
    """Joint angles of start posture ``number``, radians; 0 is the stock one.

    Postures 1-100 lie 0.1 rad from home in a random direction of joint space, 101-200 lie 0.2 rad, and so on to 0.5.

    Raises:
        SimulationError: for a number that does not exist.
    """
    if not 0 <= number <= COUNT:
        raise SimulationError(f"LIBERO-Plus has start postures 0 to {COUNT}, not {number}")
    return HOME.copy() if number == 0 else _postures()[number - 1].copy()


@functools.cache
def _postures() -> Float[np.ndarray, "500 7"]:
    """The benchmark's generator, its seed, and the eight decimals with which it wrote its robot classes."""
    directions = np.random.RandomState(_SEED).randn(COUNT, len(HOME))
    directions = np.array([direction / np.linalg.norm(direction) for direction in directions])
    distances = 0.1 * (1 + np.arange(COUNT) // _PER_LEVEL)
    return np.round(HOME + directions * distances[:, None], 8)
