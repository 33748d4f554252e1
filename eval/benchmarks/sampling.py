"""Stratified samples: fewer episodes in the proportions of all, nested, and the same whatever the order of the list."""

import collections
from collections.abc import Callable
from collections.abc import Hashable
from collections.abc import Sequence
from typing import TypeVar

from pokevla_jax.data import hashing

Item = TypeVar("Item")


def stratified(
    items: Sequence[Item], count: int, *, name: Callable[[Item], str], stratum: Callable[[Item], Hashable], seed: int
) -> list[Item]:
    """``count`` of ``items`` in their order, drawn from each stratum in proportion to its size.

    Each item gets a place in its stratum by the hash of its name, and the strata are spread evenly over [0, 1), each
    with an offset of its own: the sample is what comes first. So each stratum keeps its share, give or take an item or
    two, and a larger sample of the same seed contains the smaller one.

    Args:
        items: what is drawn from; all of it if there are no more than ``count``.
        count: size of the sample.
        name: an item's name, unlike all others.
        stratum: what the sample is balanced over.
        seed: another seed, another sample.
    """
    strata: dict[Hashable, list[Item]] = collections.defaultdict(list)
    for item in items:
        strata[stratum(item)].append(item)
    places: dict[str, tuple[float, float]] = {}
    for key, members in strata.items():
        offset = _uniform(seed, f"stratum {key}")
        ranked = sorted(members, key=lambda item: _uniform(seed, name(item)))
        for rank, item in enumerate(ranked):
            places[name(item)] = ((rank + offset) / len(members), _uniform(seed, name(item)))
    chosen = {name(item) for item in sorted(items, key=lambda item: places[name(item)])[:count]}
    return [item for item in items if name(item) in chosen]


def _uniform(seed: int, text: str) -> float:
    """A number in [0, 1) that depends on the seed and the text alone."""
    return hashing.uniform(f"{seed} {text}")
