"""Ceilings against integrals, simulated attackers and published values."""

import math
import sys

import numpy as np
import pytest
from benchmarks.ceiling import exact_success, simulated_hits
from scipy import stats

from leakmap.ceiling.releases import Releases
from leakmap.ceiling.table import table
from leakmap.errors import BadSetting
from leakmap.scoring.statistics import clopper_pearson

SAMPLED = Releases(1.0, 20, 0.1)


def test_published_values():
    # Balle and Wang 2018, the analytic Gaussian mechanism: delta of noise multiplier 1 at epsilon 1 is 0.1269.
    assert Releases(1.0).delta(1.0) == pytest.approx(0.12693674, abs=1e-8)
    # Dong, Roth and Su 2022: T rounds of mu-GDP are sqrt(T) mu-GDP, and epsilon 0 gives the total variation.
    assert Releases(3.0, 9).delta(0.0) == pytest.approx(2 * stats.norm.cdf(0.5) - 1)
    assert (
        Releases(2.0, 4).epsilon(1e-5) == pytest.approx(Releases(1.0).epsilon(1e-5)) == pytest.approx(4.3772, abs=1e-4)
    )
    assert Releases(1e3).epsilon(0.1) == 0


@pytest.mark.parametrize(
    ("gallery", "found"),
    [(24, (0.069, 0.109, 0.232, 0.606, 0.988)), (100, (0.0189, 0.0339, 0.0924, 0.372, 0.953))],
)
def test_ceilings_lie_little_above_what_the_best_attacker_reaches(gallery, found):
    for mu, ceiling in zip((0.25, 0.5, 1, 2, 4), found, strict=True):
        own = Releases(1 / mu).success(gallery)
        assert own == pytest.approx(ceiling, abs=6e-4)
        assert own / 1.2 < exact_success(Releases(1 / mu), gallery) < own


def test_a_simulated_attacker_reaches_the_integral_and_stays_below_the_ceiling():
    source = np.random.default_rng(0)
    for releases in (Releases(1.0), Releases(2.0, 10)):
        share = clopper_pearson(simulated_hits(releases, 24, 3000, source), 3000, 0.999)
        assert share.low < exact_success(releases, 24) < share.high
        assert share.low < releases.success(24)


def test_sampled_rounds_hide_more_and_their_ceiling_is_just_above_the_best_attacker():
    pytest.importorskip("dp_accounting", reason="the extra 'dp' is not installed")
    share = clopper_pearson(simulated_hits(SAMPLED, 24, 3000, np.random.default_rng(0)), 3000, 0.999)
    exact, ceiling = exact_success(SAMPLED, 24), SAMPLED.success(24)
    assert share.low < exact < share.high
    assert exact < ceiling < 1.2 * exact
    assert 1 / 24 < ceiling < Releases(1.0, 20).success(24)
    nearly_all = Releases(1.0, 4, 1 - 1e-9)
    assert nearly_all.success(100) == pytest.approx(Releases(1.0, 4).success(100), rel=2e-3)
    assert nearly_all.success(100) >= Releases(1.0, 4).success(100) - 1e-9, "rounded upwards"


def test_without_the_accountant_sampled_rounds_say_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "dp_accounting.pld.privacy_loss_distribution", None)
    with pytest.raises(BadSetting, match=r"install it with: pip install 'leakmap\[dp\]'\.$"):
        Releases(1.7, 20, 0.1).success(24)


def test_no_linear_attacker_comes_below_the_error():
    source = np.random.default_rng(0)
    x = source.standard_normal((400, 300))
    x /= (x * x).mean() ** 0.5
    for noise in (0.2, 0.05):
        seen = x / np.linalg.norm(x, axis=1, keepdims=True) + noise * source.standard_normal(x.shape)
        error = float(((((seen * x).sum() / (seen * seen).sum()) * seen - x) ** 2).mean())
        assert Releases(noise).error(300, 1.0) < error
    assert Releases(0.2).error(300, 1.0) > 0.97 * 1 / (1 + 25 / 300), "and the bound is near where the noise is large"
    assert Releases(0.2, 4, 0.25).error(300, 1.0) == Releases(0.2).error(300, 1.0)


def test_without_noise_nothing_is_bounded_and_impossible_numbers_are_refused():
    none = Releases(0.0)
    assert (none.success(100), none.epsilon(1e-5), none.error(3, 1.0), none.delta(5.0)) == (1.0, math.inf, 0.0, 1.0)
    assert table(none, [10], 1.0, 3, 1.0).psnr is None
    assert Releases(1.0).success(1) == 1
    for wrong in ({"noise": -1}, {"noise": math.nan}, {"rounds": 0}, {"sample_rate": 0}, {"sample_rate": 1.1}):
        with pytest.raises(BadSetting, match="A ceiling needs"):
            Releases(**{"noise": 1.0, **wrong})
    for refused in (lambda: Releases(1.0).success(0), lambda: Releases(1.0).epsilon(0), lambda: none.error(0, 1.0)):
        with pytest.raises(BadSetting):
            refused()
