"""Intervals and tests for success rates: Wilson, Newcombe's paired difference, McNemar's exact test.

Standard library only, so that the numbers of a report can be recomputed anywhere.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple


class Interval(NamedTuple):
    """A closed interval."""

    low: float
    high: float


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion; (0, 1) when nothing was observed.

    Source: E. B. Wilson, JASA 22 (1927). Unlike the normal interval it is sensible at 0 and n of n.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n} is impossible")
    if n == 0:
        return Interval(0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = successes / n
    center = (rate + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(rate * (1 - rate) / n + z * z / (4 * n * n))
    # Exact at the ends, where rounding would otherwise leave 1e-17 beside the bound.
    low = 0.0 if successes == 0 else center - half
    high = 1.0 if successes == n else center + half
    return Interval(low, high)


@dataclass(frozen=True)
class Pairs:
    """Outcomes of two policies on the same episodes: the four cells of a paired table."""

    both: int
    only_a: int
    only_b: int
    neither: int

    @classmethod
    def count(cls, outcomes: Iterable[tuple[bool, bool]]) -> "Pairs":
        """The table of (a succeeded, b succeeded) pairs."""
        cells = {(True, True): 0, (True, False): 0, (False, True): 0, (False, False): 0}
        for a, b in outcomes:
            cells[bool(a), bool(b)] += 1
        return cls(cells[True, True], cells[True, False], cells[False, True], cells[False, False])

    def __add__(self, other: "Pairs") -> "Pairs":
        """Pools the pairs of two seeds; a pair is never formed across seeds."""
        return Pairs(
            self.both + other.both,
            self.only_a + other.only_a,
            self.only_b + other.only_b,
            self.neither + other.neither,
        )

    @property
    def n(self) -> int:
        """Number of pairs."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def difference(self) -> float:
        """Success rate of a minus that of b."""
        return (self.only_a - self.only_b) / self.n if self.n else 0.0


def paired_difference(pairs: Pairs, confidence: float = 0.95) -> Interval:
    """Newcombe's square-and-add score interval (his method 10) of ``pairs.difference``; (-1, 1) without pairs.

    Wilson's intervals of the two rates are combined with their correlation phi, which is shrunk by a continuity
    correction. Source: R. G. Newcombe, Statistics in Medicine 17:2635-2650 (1998).
    """
    n = pairs.n
    if n == 0:
        return Interval(-1.0, 1.0)
    successes_a, successes_b = pairs.both + pairs.only_a, pairs.both + pairs.only_b
    rate_a, rate_b = successes_a / n, successes_b / n
    low_a, high_a = wilson(successes_a, n, confidence)
    low_b, high_b = wilson(successes_b, n, confidence)

    product = float(pairs.both * pairs.neither - pairs.only_a * pairs.only_b)
    if product > 0:
        product = max(product - n / 2, 0.0)
    margins = successes_a * (n - successes_a) * successes_b * (n - successes_b)
    phi = product / math.sqrt(margins) if margins else 0.0

    def add(x: float, y: float) -> float:
        # Rounding alone can make the sum negative, by 1e-17.
        return math.sqrt(max(x * x - 2 * phi * x * y + y * y, 0.0))

    return Interval(
        pairs.difference - add(rate_a - low_a, high_b - rate_b),
        pairs.difference + add(high_a - rate_a, rate_b - low_b),
    )


def mcnemar_exact(only_a: int, only_b: int) -> float:
    """Two-sided exact p-value of McNemar's test: the discordant pairs against a fair coin; 1 without any."""
    n, smaller = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(smaller + 1)) / 2**n
    return min(1.0, 2 * tail)
