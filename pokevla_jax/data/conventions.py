"""What the numbers of an action mean, and the steps at which a robot is told to do nothing.

Stored actions follow LIBERO's convention: a gripper's entry is -1 to open and +1 to close.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from pokevla_jax.data.codec import DataError
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float

Gripper = Literal["minus_opens", "plus_opens", "one_opens", "zero_opens", "unchanged"]
"""How a gripper is commanded: -1 opens and +1 closes (LIBERO), the reverse, 1 opens and 0 closes (Open
X-Embodiment), 0 opens and 1 closes; "unchanged" keeps a position or speed as it is."""

STILL = 1e-4
"""Norm of a motion below which a robot stands (OpenVLA's ``regenerate_libero``)."""


def to_stored_gripper(values: Float[np.ndarray, "*t"], convention: Gripper) -> Float[np.ndarray, "*t"]:
    """Gripper commands in LIBERO's convention."""
    match convention:
        case "minus_opens" | "unchanged":
            return values
        case "plus_opens":
            return -values
        case "one_opens":
            return 1 - 2 * values
        case "zero_opens":
            return 2 * values - 1
    raise DataError(f"Unknown gripper convention {convention!r}")


def gripper_dims(dims: Sequence[int], width: int) -> tuple[int, ...]:
    """Indices from 0 of the gripper's entries of an action of ``width`` numbers; negative ones count from the end."""
    result = tuple(sorted({dim + width if dim < 0 else dim for dim in dims}))
    if result and not 0 <= result[0] <= result[-1] < width:
        raise DataError(f"Gripper entries {list(dims)} do not lie within an action of {width} numbers")
    return result


def noop_steps(
    action: Float[np.ndarray, "t a"],
    first: Bool[np.ndarray, " t"],
    grippers: Sequence[int],
    *,
    absolute: bool = False,
) -> Bool[np.ndarray, " t"]:
    """Steps that neither move the arm nor change a gripper's command.

    Args:
        action: one row per step, episodes one after the other.
        first: True at the first step of each episode; there, only the arm counts.
        grippers: entries of the action that command grippers.
        absolute: whether actions are target positions, which say nothing by themselves: they move when they change.
    """
    arm = np.setdiff1d(np.arange(action.shape[1]), grippers)
    before = np.roll(action, 1, axis=0)
    motion = action[:, arm] - before[:, arm] if absolute else action[:, arm]
    still = np.linalg.norm(motion, axis=1) < STILL
    if absolute:
        still &= ~first
    same = (action[:, list(grippers)] == before[:, list(grippers)]).all(axis=1)
    return still & (same | first)
