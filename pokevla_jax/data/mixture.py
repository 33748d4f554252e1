"""The order of samples: an endless sequence that is a pure function of a seed and of the mixture.

An epoch shows every sample of a part ``weight`` times (a fraction of them, other ones in the next epoch, where that is
no whole number), all parts shuffled together. Whoever asks for the g-th sample of a run gets the same answer, whatever
the number of hosts, worker processes or restarts.
"""

import functools
import hashlib
import json
from collections.abc import Mapping
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pokevla_jax.config import DataConfig
from pokevla_jax.data.codec import DataError
from pokevla_jax.typing import Int


@dataclass(frozen=True)
class Part:
    """Samples that share a weight.

    Attributes:
        name: shown to people; part of the mixture's digest.
        ids: the samples.
        weight: how often an epoch shows each of them.
    """

    name: str
    ids: Int[np.ndarray, " n"]
    weight: float = 1.0

    @property
    def count(self) -> int:
        """Samples of this part in one epoch."""
        return round(len(self.ids) * self.weight)


class Order:
    """The endless sequence of a mixture's samples.

    Attributes:
        num_samples: samples per epoch.
    """

    def __init__(self, parts: Sequence[Part], seed: int):
        self.parts = tuple(part for part in parts if part.count)
        self.num_samples = sum(part.count for part in self.parts)
        self._seed = seed
        # Two: a batch may reach from one epoch into the next.
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def __getstate__(self) -> dict:
        return {name: value for name, value in self.__dict__.items() if name != "_epoch"}

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.__dict__.update(state)
        self._epoch = functools.lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, g: int) -> tuple[int, int]:
        """Epoch and id of sample ``g`` of the run."""
        epoch, place = divmod(int(g), self.num_samples)
        return epoch, int(self._epoch(epoch)[place])

    def epoch(self, epoch: int) -> Int[np.ndarray, " n"]:
        """All samples of an epoch, in order."""
        return self._epoch(epoch)

    def _shuffled(self, epoch: int) -> Int[np.ndarray, " n"]:
        chosen = [_chosen(part, epoch, [self._seed, index]) for index, part in enumerate(self.parts)]
        ids = np.concatenate(chosen)
        return ids[_permutation(len(ids), [self._seed, len(self.parts), epoch])]


def _chosen(part: Part, epoch: int, seed: Sequence[int]) -> Int[np.ndarray, " n"]:
    """The part's samples in one epoch: the next ``count`` of endless shuffled rounds over all of them."""
    size = len(part.ids)
    if part.count % size == 0:
        return np.tile(part.ids, part.count // size)
    first, last = epoch * part.count // size, -(-(epoch + 1) * part.count // size)
    sequence = np.concatenate([part.ids[_permutation(size, [*seed, r, 1])] for r in range(first, last)])
    start = epoch * part.count - first * size
    return sequence[start : start + part.count]


def _permutation(size: int, seed: Sequence[int]) -> Int[np.ndarray, " n"]:
    """A random order of ``range(size)``.

    Made of the bit generator's raw stream, which numpy keeps from version to version; its ``permutation`` may change.
    """
    return np.argsort(np.random.PCG64(list(seed)).random_raw(size), kind="stable")


def weighted_parts(
    names: Sequence[str],
    groups: Int[np.ndarray, " n"],
    ids: Int[np.ndarray, " n"],
    weights: Mapping[str, float],
    factors: Sequence[float] | None = None,
) -> list[Part]:
    """One part per group that has samples, weighted by its name.

    Args:
        names: of the groups.
        groups: which group each of ``ids`` belongs to.
        ids: the samples.
        weights: by name; 1 for a name that is not listed.
        factors: multiplied with each group's weight.

    Raises:
        DataError: for a weight whose name is not there, so that a misspelt one is not ignored.
    """
    check_names("source_weights", weights, names)
    parts = []
    for index, name in enumerate(names):
        chosen = ids[groups == index]
        weight = weights.get(name, 1.0) * (1.0 if factors is None else factors[index])
        if len(chosen):
            parts.append(Part(name, chosen, weight))
    return parts


def check_names(key: str, weights: Mapping[str, float], names: Sequence[str]) -> None:
    """Raises ``DataError`` where ``config.data.<key>`` names something that the data does not have."""
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise DataError(f"config.data.{key} names {unknown[0]!r}; the data has {', '.join(names)}")


def digest(parts: Sequence[Part], data: DataConfig) -> str:
    """Short name of a mixture: equal for equal samples, weights and packing."""
    described: list[Any] = [[part.name, part.weight, hashlib.sha256(part.ids.tobytes()).hexdigest()] for part in parts]
    return hashlib.sha256(json.dumps([*described, data.pack_length, data.pack_images]).encode()).hexdigest()[:16]
