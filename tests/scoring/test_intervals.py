"""Intervals: do they hold the truth as often as they say? Shares exactly, means by simulation."""

import numpy as np
import pytest

from leakmap.scoring.statistics import clopper_pearson, mean_interval, share_interval


def test_the_exact_interval_and_the_bound_are_the_textbook_ones():
    found = clopper_pearson(2, 8)
    assert (found.value, found.low, found.high) == pytest.approx((0.25, 0.0319, 0.6509), abs=1e-4)
    assert (clopper_pearson(0, 12).high, clopper_pearson(0, 36).high) == pytest.approx((0.2646, 0.0974), abs=1e-4)
    assert (clopper_pearson(12, 12).high, clopper_pearson(0, 0).high) == (1, 1)
    with pytest.raises(ValueError, match="13 of 12"):
        clopper_pearson(13, 12)


def test_a_share_of_pictures_counts_clients_and_never_claims_more_than_they_show():
    assert share_interval([0, 1, 1], [1, 1, 1]) == clopper_pearson(2, 3)
    assert share_interval([0, 8, 8], [8, 8, 8]) == clopper_pearson(2, 3)
    partial = share_interval([3, 1, 1, 1], [4, 4, 4, 4])
    assert (partial.value, partial.low) == (6 / 16, clopper_pearson(1, 4).low)
    assert partial.high == clopper_pearson(2, 4).high
    assert share_interval([0, 0, 0], [8, 1, 1]).high == clopper_pearson(0, 1).high
    with pytest.raises(ValueError, match="more hits than pictures"):
        share_interval([2], [1])


def test_no_distribution_of_hits_within_clients_is_covered_too_rarely():
    """The exact coverage, for random distributions of the hits of a client, some of them all or nothing."""
    rng = np.random.default_rng(0)
    for n, size in ((8, 4), (12, 8), (36, 2)):
        found = [
            share_interval([*[size] * (k // size), k % size, *[0] * n][:n], [size] * n) for k in range(n * size + 1)
        ]
        low, high = np.array([[one.low, one.high] for one in found]).T
        for _ in range(100):
            places = rng.choice(size + 1, 2, replace=False)
            of_client = np.zeros(size + 1)
            of_client[places] = rng.dirichlet([0.5, 0.5])
            of_all = np.ones(1)
            for _ in range(n):
                of_all = np.convolve(of_all, of_client)
            share = of_client @ np.arange(size + 1) / size
            assert of_all[(low <= share + 1e-12) & (share - 1e-12 <= high)].sum() >= 0.95


@pytest.mark.parametrize(
    ("draw", "mean"),
    [(np.random.Generator.standard_normal, 0.0), (np.random.Generator.standard_exponential, 1.0)],
)
def test_a_mean_of_twelve_is_covered_by_its_interval_normal_or_skewed(draw, mean):
    rng = np.random.default_rng(0)
    found = [mean_interval(draw(rng, 12)) for _ in range(500)]
    assert 0.92 < np.mean([one.low <= mean <= one.high for one in found]) < 0.98


def test_intervals_of_few_many_and_equal_clients():
    assert mean_interval([3.0]).low == -np.inf
    assert mean_interval([2.0] * 12).high == 2
    three = mean_interval([1.0, 2.0, 3.0])
    assert (three.low, three.high) == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)
    values = np.random.default_rng(0).normal(size=200)
    by_t, by_bootstrap = mean_interval(values), mean_interval(values[:199])
    assert by_t.high - by_t.low == pytest.approx(by_bootstrap.high - by_bootstrap.low, rel=0.1)
    one_of_twelve = mean_interval([60.0, *np.linspace(9, 12, 11)])
    assert one_of_twelve.high == 60
    assert one_of_twelve.low > 9
