"""What is said to be detectable is what is detected in four of five simulated experiments."""

import math

import numpy as np
import pytest

from leakmap.scoring.equivalence import equivalent
from leakmap.scoring.power import detectable_margin, detectable_mean, detectable_share
from leakmap.scoring.statistics import clopper_pearson

N, TIMES = 24, 4000


def drawn(mean):
    return np.random.default_rng(0).normal(mean, 1.0, (TIMES, N))


def test_a_mean_of_that_size_is_found_in_four_of_five_experiments():
    values = drawn(detectable_mean(1 / math.sqrt(N), N))
    t = values.mean(1) / (values.std(1, ddof=1) / math.sqrt(N))
    assert np.mean(t > 2.0687) == pytest.approx(0.8, abs=0.03)


def test_nothing_is_shown_to_be_small_within_that_margin_in_four_of_five_experiments():
    margin = detectable_margin(1 / math.sqrt(N), N)
    assert np.mean([equivalent(row, margin).equivalent for row in drawn(0.0)[:800]]) == pytest.approx(0.8, abs=0.05)


@pytest.mark.parametrize(("margin", "above"), [(0.5, True), (0.25, False)])
def test_a_share_that_far_from_the_margin_is_kept_apart_from_it_in_four_of_five_experiments(margin, above):
    distance = detectable_share(N, margin, above)
    hits = np.random.default_rng(0).binomial(N, margin + distance if above else margin - distance, TIMES)
    ends = [clopper_pearson(int(one), N) for one in hits]
    shown = [end.low > margin if above else end.high < margin for end in ends]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.03)


def test_with_too_few_clients_nothing_is_detectable():
    assert detectable_mean(math.nan, 1) == detectable_margin(math.nan, 1) == math.inf
    assert detectable_share(2, 0.5, True) == detectable_share(6, 0.25, False) == math.inf
