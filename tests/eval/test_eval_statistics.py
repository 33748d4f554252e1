"""The intervals against published values and independent implementations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.statistics import Interval
from eval.statistics import Pairs
from eval.statistics import clustered_bootstrap
from eval.statistics import mcnemar_exact
from eval.statistics import paired_difference
from eval.statistics import wilson

counts = st.integers(0, 60)


@pytest.mark.parametrize(
    ("successes", "n", "expected"),
    [
        # Newcombe, Statistics in Medicine 17:857-872 (1998), table I, method 3.
        (81, 263, (0.2553, 0.3662)),
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
    ],
)
def test_wilson_gives_the_published_intervals(successes, n, expected):
    assert wilson(successes, n) == pytest.approx(expected, abs=5e-5)


@given(st.integers(1, 400), st.floats(0, 1), st.sampled_from([0.9, 0.95, 0.99]))
def test_wilson_agrees_with_scipy(n, share, confidence):
    successes = round(share * n)
    reference = stats.binomtest(successes, n).proportion_ci(confidence_level=confidence, method="wilson")
    assert wilson(successes, n, confidence) == pytest.approx((reference.low, reference.high), abs=1e-12)


def test_wilson_says_nothing_without_observations():
    assert wilson(0, 0) == Interval(0.0, 1.0)
    with pytest.raises(ValueError, match="impossible"):
        wilson(3, 2)


def test_paired_difference_gives_the_published_interval():
    # Cavo et al. (2012): 59, 6, 16, 80; Fagerland, Lydersen and Laake print -0.119 to -0.005 for square-and-add.
    interval = paired_difference(Pairs(59, 6, 16, 80))
    assert interval == pytest.approx((-0.1186, -0.0046), abs=1e-3)


@pytest.mark.parametrize("cells", [(12, 9, 2, 21), (5, 20, 1, 14), (0, 10, 0, 10), (3, 3, 3, 3)])
def test_paired_difference_follows_the_formula_written_another_way(cells):
    a, b, c, d = cells
    n = sum(cells)
    ends = [stats.binomtest(k, n).proportion_ci(method="wilson") for k in (a + b, a + c)]
    rates = np.array([a + b, a + c]) / n
    x = np.repeat([1, 1, 0, 0], cells)
    y = np.repeat([1, 0, 1, 0], cells)
    covariance = n * n * np.mean((x - x.mean()) * (y - y.mean()))  # = ad - bc
    shrunk = np.sign(covariance) * max(abs(covariance) - n / 2, 0) if covariance > 0 else covariance
    phi = shrunk / (n * n * x.std() * y.std()) if x.std() * y.std() else 0.0
    correlation = np.array([[1, -phi], [-phi, 1]])
    lower = np.array([rates[0] - ends[0].low, ends[1].high - rates[1]])
    upper = np.array([ends[0].high - rates[0], rates[1] - ends[1].low])
    difference = rates[0] - rates[1]
    expected = (difference - np.sqrt(lower @ correlation @ lower), difference + np.sqrt(upper @ correlation @ upper))
    assert paired_difference(Pairs(a, b, c, d)) == pytest.approx(expected, abs=1e-12)


@given(counts, counts, counts, counts)
def test_paired_difference_is_antisymmetric_and_holds_the_estimate(both, only_a, only_b, neither):
    pairs = Pairs(both, only_a, only_b, neither)
    low, high = paired_difference(pairs)
    assert -1 <= low <= pairs.difference <= high <= 1
    mirrored = paired_difference(Pairs(both, only_b, only_a, neither))
    assert mirrored == pytest.approx((-high, -low), abs=1e-12)


def test_paired_difference_covers_the_truth():
    """Simulated pairs with rates 0.7 and 0.3: about 95 % of the intervals hold the true difference."""
    rng = np.random.default_rng(0)
    tables = rng.multinomial(40, [0.25, 0.45, 0.05, 0.25], size=2000)
    intervals = [paired_difference(Pairs(*map(int, table))) for table in tables]
    coverage = np.mean([low <= 0.4 <= high for low, high in intervals])
    assert 0.93 < coverage < 0.985


@given(counts, counts)
def test_mcnemar_is_the_binomial_test_of_the_discordant_pairs(only_a, only_b):
    n = only_a + only_b
    expected = stats.binomtest(only_a, n).pvalue if n else 1.0
    assert mcnemar_exact(only_a, only_b) == pytest.approx(expected)


def test_pairs_are_counted_and_pooled():
    first = Pairs.count([(True, True), (True, False), (False, False)])
    second = Pairs.count([(False, True), (True, False)])
    assert first == Pairs(1, 1, 0, 1)
    assert first + second == Pairs(1, 2, 1, 1)
    assert (first + second).difference == pytest.approx(0.2)
    assert paired_difference(Pairs(0, 0, 0, 0)) == Interval(-1.0, 1.0)


def draws_of_scipy(totals, counts, strata, macro):
    """The same bootstrap by scipy: clusters are drawn by index, each stratum for itself."""
    members = [np.flatnonzero(strata == label) for label in np.unique(strata)]

    def mean(*drawn, axis):
        sums, episodes = (sum(x[m].sum(axis - 1) for m in drawn) for x in (totals, counts))
        return (sums / episodes).mean(-1) if macro else sums.sum(-1) / episodes.sum(-1)

    return stats.bootstrap(
        members, mean, n_resamples=10_000, method="percentile", vectorized=True, rng=np.random.default_rng(1)
    ).confidence_interval


def clusters(seed=0, per_stratum=(8, 10), columns=2):
    """Tasks of different difficulty and size."""
    rng = np.random.default_rng(seed)
    strata = np.repeat(np.arange(len(per_stratum)), per_stratum)
    counts = rng.integers(1, 40, (len(strata), columns))
    totals = rng.binomial(counts, rng.beta(1, 1, (len(strata), 1))).astype(float)
    return totals, counts, strata


@pytest.mark.parametrize("macro", [False, True])
def test_clustered_bootstrap_agrees_with_scipy(macro):
    totals, counts, strata = clusters()
    found = clustered_bootstrap(totals, counts, strata)
    expected = draws_of_scipy(totals, counts, strata, macro)
    interval = found.macro if macro else found.pooled
    # Two sets of 10,000 draws; the interval is about 0.25 wide.
    assert interval == pytest.approx((expected.low, expected.high), abs=0.008)
    assert interval.high - interval.low > 0.15
    assert clustered_bootstrap(totals, counts, strata) == found
    assert clustered_bootstrap(totals, counts, strata, seed=1) != found


def test_clustered_bootstrap_draws_every_pair_of_two_tasks():
    """Two tasks at 0 and 1: the mean is 0, a half or 1 with 1/4, 1/2, 1/4, by hand."""
    totals, counts, strata = np.array([[0.0], [7.0]]), np.array([[7], [7]]), np.zeros(2, int)
    assert clustered_bootstrap(totals, counts, strata).pooled == (0, 1)
    assert clustered_bootstrap(totals, counts, strata, confidence=0.4).pooled == (0.5, 0.5)
    # In strata of their own nothing is drawn, and a single stratum of one task says nothing either.
    assert clustered_bootstrap(totals, counts, np.array([0, 1])) == (None, None)
    assert clustered_bootstrap(totals[:0], counts[:0], strata[:0]) == (None, None)


def test_clustered_bootstrap_does_not_claim_certainty():
    counts = np.array([[50], [20], [30]])
    assert clustered_bootstrap(counts.astype(float), counts, np.zeros(3, int)) == (None, None)
    assert clustered_bootstrap(0.1 * counts, counts, np.zeros(3, int)).pooled is None


def test_pooled_and_macro_are_not_the_same():
    """One column of 90 episodes that all fail, one of 10 that all succeed, in every task."""
    totals, counts = np.array([[0.0, 10.0], [0.0, 9.0]] * 5), np.array([[90, 10]] * 10)
    found = clustered_bootstrap(totals, counts, np.zeros(10, int))
    assert 0.09 <= found.pooled.low <= found.pooled.high <= 0.1
    assert 0.45 <= found.macro.low <= found.macro.high <= 0.5


def test_clustered_bootstrap_covers_where_wilson_does_not():
    """Ten tasks of 50 episodes whose rates differ: the mean over such tasks is one half."""
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    repeats = 300
    for _ in range(repeats):
        counts = np.full((10, 1), 50)
        totals = rng.binomial(50, rng.beta(1, 1, (10, 1))).astype(float)
        intervals = (
            clustered_bootstrap(totals, counts, np.zeros(10, int), resamples=1000).pooled,
            wilson(int(totals.sum()), 500),
        )
        held += [low <= 0.5 <= high for low, high in intervals]
    clustered, naive = held / repeats
    assert 0.84 < clustered < 0.97
    assert naive < 0.5
