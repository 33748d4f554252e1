"""Normalisation of robot state and actions by their 1st and 99th percentiles ("BOUNDS_Q99").

The formula is the one released PyTorch checkpoints were trained with (openvla-oft, ``prismatic/vla/datasets/rlds``):
``clip(2 (x - q01) / (q99 - q01 + 1e-8) - 1, -1, 1)``, the gripper's action untouched. Only a dimension that hardly
moves is treated otherwise: its range is widened to a floor, since dividing by next to nothing makes signal of noise.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pokevla_jax.data.codec import DataError
from pokevla_jax.data.records import EpisodeDataset
from pokevla_jax.typing import Bool
from pokevla_jax.typing import Float

_EPSILON = 1e-8
STATE_FLOOR = 1e-3
"""Least range of a state dimension: 1 mm or 1 mrad."""
ACTION_FLOOR = 1e-2
"""Least range of an action dimension: 1/200 of LIBERO's [-1, 1]."""


@dataclass(frozen=True)
class ColumnStatistics:
    """Exact statistics of every dimension of one column.

    Attributes:
        mask: False where a dimension passes through unnormalised.
        floor: the least range that a dimension is divided by.
    """

    mean: Float[np.ndarray, " n"]
    std: Float[np.ndarray, " n"]
    min: Float[np.ndarray, " n"]
    max: Float[np.ndarray, " n"]
    q01: Float[np.ndarray, " n"]
    q99: Float[np.ndarray, " n"]
    mask: Bool[np.ndarray, " n"]
    floor: float

    @property
    def near_constant(self) -> Bool[np.ndarray, " n"]:
        """Which normalised dimensions move less than the floor."""
        return self.mask & (self.q99 - self.q01 < self.floor)

    def bounds(self) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
        """Lower end and length of the interval that becomes [-1, 1]; a widened one keeps its middle."""
        length = np.maximum(self.q99 - self.q01, self.floor)
        low = np.where(self.near_constant, (self.q01 + self.q99 - length) / 2, self.q01)
        return low, length + _EPSILON


@dataclass(frozen=True)
class Statistics:
    """What a policy needs to know of the data it was trained on."""

    state: ColumnStatistics
    action: ColumnStatistics
    num_steps: int
    num_episodes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; ``from_json`` is the exact inverse."""
        columns = {
            name: {f.name: np.asarray(getattr(column, f.name)).tolist() for f in dataclasses.fields(column)}
            for name, column in (("state", self.state), ("action", self.action))
        }
        return {**columns, "num_steps": self.num_steps, "num_episodes": self.num_episodes}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Statistics":
        """The statistics that ``to_json`` described.

        Raises:
            DataError: when an entry is missing or has another length than its neighbours.
        """
        try:
            state, action = (_column_from_json(values[name]) for name in ("state", "action"))
            return cls(state, action, int(values["num_steps"]), int(values["num_episodes"]))
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"Statistics are incomplete or malformed ({error!r}); take the file from an intact copy"
            ) from error


def _column_from_json(values: Mapping[str, Any]) -> ColumnStatistics:
    arrays = {name: np.asarray(values[name], np.float64) for name in ("mean", "std", "min", "max", "q01", "q99")}
    column = ColumnStatistics(**arrays, mask=np.asarray(values["mask"], np.bool_), floor=float(values["floor"]))
    if {array.shape for array in (*arrays.values(), column.mask)} != {(len(column.mask),)}:
        raise ValueError("lengths differ")
    return column


def compute_statistics(dataset: EpisodeDataset) -> Statistics:
    """Exact statistics over every recorded step, rendered or not; reads no image.

    The grippers' entries of actions pass through: they have two values only.
    """
    if not len(dataset.action):
        raise DataError("Statistics need at least one step")
    action_mask = ~np.isin(np.arange(dataset.action.shape[1]), dataset.gripper_dims)
    return Statistics(
        state=_column_statistics(dataset.state, np.ones(dataset.state.shape[1], np.bool_), STATE_FLOOR),
        action=_column_statistics(dataset.action, action_mask, ACTION_FLOOR),
        num_steps=len(dataset.action),
        num_episodes=len(dataset.episodes),
    )


def _column_statistics(values: np.ndarray, mask: np.ndarray, floor: float) -> ColumnStatistics:
    values = values.astype(np.float64)
    q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
    return ColumnStatistics(
        mean=values.mean(axis=0),
        std=values.std(axis=0),
        min=values.min(axis=0),
        max=values.max(axis=0),
        q01=q01,
        q99=q99,
        mask=mask,
        floor=floor,
    )


def normalize(values: Float[np.ndarray, "*b n"], column: ColumnStatistics) -> Float[np.ndarray, "*b n"]:
    """``values`` with [q01, q99] mapped to [-1, 1] and clipped, float32; dimensions outside the mask unchanged."""
    low, length = column.bounds()
    scaled = np.clip(2 * (values - low) / length - 1, -1, 1)
    return np.where(column.mask, scaled, values).astype(np.float32)


def unnormalize(values: Float[np.ndarray, "*b n"], column: ColumnStatistics) -> Float[np.ndarray, "*b n"]:
    """The inverse of ``normalize`` within [q01, q99], float32."""
    low, length = column.bounds()
    return np.where(column.mask, (values + 1) / 2 * length + low, values).astype(np.float32)
