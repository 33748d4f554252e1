"""Normalisation statistics in the format of VLA-Adapter and OpenVLA-OFT, ``dataset_statistics.json``, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pokevla_jax.data.normalize import ColumnStatistics
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.interop.readers import SourceError

_MOMENTS = ("mean", "std", "min", "max", "q01", "q99")


def from_dataset_statistics(values: Mapping[str, Any], key: str | None = None) -> Statistics:
    """The statistics of one dataset.

    The reference divides by every range as it is, so dimensions have no floor unless the file names one.

    Args:
        values: content of the file: one entry per dataset.
        key: which dataset; may be left out where there is only one.

    Raises:
        SourceError: when the dataset is not there or its entry is incomplete.
    """
    if key is None:
        if len(values) != 1:
            raise SourceError(f"The statistics are of {len(values)} datasets ({_listed(values)}); choose one by name")
        key = next(iter(values))
    if key not in values:
        raise SourceError(f"There are no statistics of dataset {key!r}; there are those of {_listed(values)}")
    try:
        entry = values[key]
        state, action = _column(entry["proprio"]), _column(entry["action"])
        return Statistics(state, action, int(entry["num_transitions"]), int(entry["num_trajectories"]))
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"The statistics of dataset {key!r} are incomplete or malformed ({error!r})") from error


def to_dataset_statistics(statistics: Statistics, key: str) -> dict[str, Any]:
    """The inverse; ``floor`` is an addition that the reference's readers pass over."""
    entry: dict[str, Any] = {
        name: {k: np.asarray(getattr(column, k)).tolist() for k in (*_MOMENTS, "mask", "floor")}
        for name, column in (("action", statistics.action), ("proprio", statistics.state))
    }
    counts = {"num_transitions": statistics.num_steps, "num_trajectories": statistics.num_episodes}
    return {key: entry | counts}


def _column(values: Mapping[str, Any]) -> ColumnStatistics:
    moments = {name: np.asarray(values[name], np.float64) for name in _MOMENTS}
    mask = np.asarray(values.get("mask", np.ones(len(moments["mean"]))), np.bool_)
    if {array.shape for array in (*moments.values(), mask)} != {(len(mask),)}:
        raise ValueError("lengths differ")
    return ColumnStatistics(**moments, mask=mask, floor=float(values.get("floor", 0.0)))


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, values))
