"""Intervals and tests for success rates: Wilson, the task-clustered bootstrap, Newcombe's paired difference, McNemar.

Wilson's and Newcombe's intervals and McNemar's test take episodes as independent draws. They are when one task is
meant; over several tasks they are not, since episodes of a task succeed and fail together: there the bootstrap draws
whole tasks.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from pokevla_jax.typing import Float
from pokevla_jax.typing import Int

RESAMPLES = 10_000
_CELLS = 1 << 20


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


class Resampled(NamedTuple):
    """Percentile intervals of a pooled and of a macro mean; None where the data cannot say."""

    pooled: Interval | None
    macro: Interval | None


def clustered_bootstrap(
    totals: Float[np.ndarray, "clusters columns"],
    counts: Int[np.ndarray, "clusters columns"],
    strata: Int[np.ndarray, "clusters"],
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Resampled:
    """Intervals of the means over clusters drawn with replacement, each with all of its episodes.

    The pooled mean is the sum of ``totals`` over the sum of ``counts``; the macro mean is the plain mean of the
    columns' means. Clusters are drawn within their stratum, as many as it has: the suites of a benchmark are fixed, its
    tasks stand for others like them. Draws that leave a column empty are left out of the macro mean's interval.

    An interval is None where drawing tasks shows nothing: a stratum of a single cluster, or a mean that no draw changes
    (every task at 100 %), whose interval of width zero would claim certainty. With few clusters the interval is too
    narrow: ten tasks of 50 episodes hold the truth in about nine of ten cases instead of 19 of 20.

    Args:
        totals: successes (or any sum over episodes) of each cluster, in each column.
        counts: episodes likewise.
        strata: the stratum of each cluster.
        confidence: share of the draws inside the interval.
        resamples: number of draws.
        seed: of the draws; the same data gives the same interval.
    """
    labels, sizes = np.unique(strata, return_counts=True)
    if not len(labels) or sizes.min() < 2:
        return Resampled(None, None)
    rng = np.random.default_rng(seed)
    columns = np.concatenate([totals, counts], axis=1)
    drawn = sum(_resampled(columns[strata == label], resamples, rng) for label in labels)
    sums, episodes = np.split(drawn, 2, axis=1)
    with np.errstate(invalid="ignore"):
        macro = (sums / episodes).mean(axis=1)
        pooled = sums.sum(axis=1) / episodes.sum(axis=1)
    return Resampled(_percentiles(pooled, confidence), _percentiles(macro, confidence))


def _resampled(
    columns: Float[np.ndarray, "clusters columns"], resamples: int, rng: np.random.Generator
) -> Float[np.ndarray, "draws columns"]:
    """The columns' sums over as many clusters as there are, drawn with replacement."""
    size = len(columns)
    # All draws of many clusters at once would fill the memory.
    step = max(1, _CELLS // size)
    # How often each cluster is drawn; a draw of clusters is a matrix product instead of a gather.
    return np.concatenate(
        [
            rng.multinomial(size, np.full(size, 1 / size), min(step, resamples - start)) @ columns
            for start in range(0, resamples, step)
        ]
    )


def _percentiles(means: Float[np.ndarray, "draws"], confidence: float) -> Interval | None:
    means = means[np.isfinite(means)]
    # A constant differs from draw to draw by rounding alone.
    if not len(means) or np.ptp(means) < 1e-12:
        return None
    low, high = np.quantile(means, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval(float(low), float(high))
