"""Normalisation statistics in the format of VLA-Adapter and OpenVLA-OFT, ``dataset_statistics.json``, and back.

Two things are said differently there. The released networks command the gripper by 1 (open) and 0 (close), and their
evaluators turn that into LIBERO's -1 (open) and 1 (close), which is what actions are here; the statistics of an
imported network do so by an interval that runs backwards, from 3 to -1, so that nothing else has to know. And the
released code divides by every range as it is, so that a floor has to be part of the interval it is given.
"""

import dataclasses
from collections.abc import Callable
from collections.abc import Mapping
from typing import Any

import numpy as np

from pokevla_jax.data.normalize import ColumnStatistics
from pokevla_jax.data.normalize import Statistics
from pokevla_jax.interop.readers import SourceError

_MOMENTS = ("mean", "std", "min", "max", "q01", "q99")
# What normalisation to [-1, 1] leaves as it is.
_IDENTITY = (-1.0, 1.0)


def from_dataset_statistics(values: Mapping[str, Any], key: str | None = None) -> Statistics:
    """The statistics of one dataset.

    Columns with a ``floor`` are this project's own; any other file is taken for one of a released network.

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
        if "floor" not in entry["action"]:
            action = _with_gripper(action, lambda opened: 1 - 2 * opened)
        return Statistics(state, action, int(entry["num_transitions"]), int(entry["num_trajectories"]))
    except (KeyError, TypeError, ValueError) as error:
        raise SourceError(f"The statistics of dataset {key!r} are incomplete or malformed ({error!r})") from error


def to_dataset_statistics(statistics: Statistics, key: str) -> dict[str, Any]:
    """The inverse, with the floors: what this project and its exported networks read."""
    return _described(statistics, key, (*_MOMENTS, "mask", "floor"))


def to_released_statistics(statistics: Statistics, key: str) -> dict[str, Any]:
    """The same for VLA-Adapter's own code: its gripper, and floors made part of the intervals."""
    state, action = _without_floor(statistics.state), _without_floor(statistics.action)
    action = _with_gripper(action, lambda closed: (1 - closed) / 2)
    return _described(dataclasses.replace(statistics, state=state, action=action), key, (*_MOMENTS, "mask"))


def _described(statistics: Statistics, key: str, fields: tuple[str, ...]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        name: {k: np.asarray(getattr(column, k)).tolist() for k in fields}
        for name, column in (("action", statistics.action), ("proprio", statistics.state))
    }
    counts = {"num_transitions": statistics.num_steps, "num_trajectories": statistics.num_episodes}
    return {key: entry | counts}


def _without_floor(column: ColumnStatistics) -> ColumnStatistics:
    """The column with the intervals that its floor makes of those that are too short."""
    low, _ = column.bounds()
    q99 = np.where(column.near_constant, low + column.floor, column.q99)
    return dataclasses.replace(column, q01=low, q99=q99, floor=0.0)


def _with_gripper(column: ColumnStatistics, convert: Callable[[Any], Any]) -> ColumnStatistics:
    """The column whose last entry, the gripper's, is said otherwise: by ``convert``, which is linear and decreasing.

    The network's output stays as it is, so its interval is converted; the whole of it where it passed through.
    """
    values = {name: np.array(getattr(column, name)) for name in (*_MOMENTS, "mask")}
    old = {name: array[-1].item() for name, array in values.items()}
    interval = tuple(convert(x) for x in ((old["q01"], old["q99"]) if old["mask"] else _IDENTITY))
    values["mean"][-1] = convert(old["mean"])
    values["std"][-1] = old["std"] * abs(convert(1.0) - convert(0.0))
    values["min"][-1], values["max"][-1] = convert(old["max"]), convert(old["min"])
    values["mask"][-1] = interval != _IDENTITY
    # Where it passes through, its quantiles are those of two values.
    shown = interval if values["mask"][-1] else (values["min"][-1], values["max"][-1])
    values["q01"][-1], values["q99"][-1] = shown
    # A floor above a backward interval would turn it.
    floor = min(column.floor, float(np.min(values["q99"] - values["q01"])))
    return ColumnStatistics(**values, floor=floor)


def _column(values: Mapping[str, Any]) -> ColumnStatistics:
    moments = {name: np.asarray(values[name], np.float64) for name in _MOMENTS}
    mask = np.asarray(values.get("mask", np.ones(len(moments["mean"]))), np.bool_)
    if {array.shape for array in (*moments.values(), mask)} != {(len(mask),)}:
        raise ValueError("lengths differ")
    return ColumnStatistics(**moments, mask=mask, floor=float(values.get("floor", 0.0)))


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(map(repr, values))
