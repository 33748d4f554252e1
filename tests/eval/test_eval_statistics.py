"""The intervals against published values and independent implementations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from eval.statistics import Interval
from eval.statistics import Pairs
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
