"""The comparison of two groups: its arithmetic by hand, and what its state carries."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate
from scipy.stats import norm

from bandit.comparison import START, Comparison, Group, normal_mixture_boundary
from bandit.errors import InvalidInput, SnapshotMismatch


def test_the_boundary_is_where_the_half_normal_mixture_is_one_over_alpha():
    """By quadrature over λ ~ half-normal(1/ρ): m(u(v), v) is at least 1/α, and less than a tenth more."""
    for v, alpha, rho in ((10.0, 0.05, 4.0), (500.0, 0.01, 30.0), (40_000.0, 0.01, 3_750.0)):
        u = normal_mixture_boundary(v, alpha, rho)
        sd = 1.0 / math.sqrt(rho)
        m, _ = integrate.quad(
            lambda x, u=u, v=v, sd=sd: math.exp(x * u - x * x * v / 2) * 2 * norm.pdf(x, scale=sd),
            0,
            20 * sd,
            points=[u / (v + rho)],
            limit=200,
        )
        assert 1 / alpha <= m <= 1.1 / alpha


def test_a_weighted_mean_and_its_error_are_those_of_a_ratio_estimator():
    """Values 1, 0, 1 with weights 1, ½, ¼: mean 1.25/1.75; the error by hand, pseudo-observation included."""
    group = Group()
    for x, w in ((1.0, 1.0), (0.0, 0.5), (1.0, 0.25)):
        group.add(x, w)
    mean = 1.25 / 1.75
    spread = (1 - mean) ** 2 + 0.25 * mean**2 + 0.0625 * (1 - mean) ** 2
    assert group.mean == pytest.approx(mean)
    assert group.squared_error(1.0) == pytest.approx((spread + 1.3125 / 3) / 1.75**2)


def test_a_stratum_counts_once_both_groups_have_enough():
    """Before that the estimate is unknown and the interval says nothing."""
    comparison = Comparison(0.02)
    for _ in range(START):
        comparison.add("treated", 1.0)
    for _ in range(START - 1):
        comparison.add("control", 0.0)
    assert math.isnan(comparison.estimate)
    assert comparison.interval() == (-math.inf, math.inf)
    comparison.add("control", 0.0)
    assert comparison.estimate == 1.0
    low, high = comparison.interval()
    assert low < 1.0 < high


def test_a_change_of_traffic_between_strata_is_no_difference_of_groups():
    """Both groups have 0.9 in one stratum and 0.4 in another, in other proportions: pooled they differ, here not."""
    comparison = Comparison(0.02)
    for stratum, mean, treated, control in ((0, 0.9, 100, 900), (1, 0.4, 900, 100)):
        for side, n in (("treated", treated), ("control", control)):
            for i in range(n):
                comparison.add(side, float(i < round(mean * n)), stratum=stratum)
    assert comparison.mean("treated") - comparison.mean("control") == pytest.approx(-0.4)
    assert comparison.estimate == pytest.approx(0.0, abs=1e-12)


def test_weights_undo_a_choice_by_context():
    """A policy sends the control mostly easy calls (quality 1) and few hard ones (0); half of all calls are hard."""
    comparison, plain = Comparison(0.02), Comparison(0.02)
    for hard, p, calls in ((False, 0.8, 800), (True, 0.1, 100)):
        for _ in range(calls):
            comparison.add("control", float(not hard), weight=0.1 / p)
            plain.add("control", float(not hard))
    assert plain.mean("control") == pytest.approx(8 / 9)
    assert comparison.mean("control") == pytest.approx(0.5)


def test_relative_differences_are_in_units_of_the_control():
    """Costs of 3 and 2 mUSD: half as much again; a factor of 1.5 leaves nothing."""
    comparison = Comparison(0.05, relative=True)
    for _ in range(5_000):
        comparison.add("treated", 0.003)
        comparison.add("control", 0.002)
    assert comparison.estimate == pytest.approx(0.5)
    low, high = comparison.interval(0.01, factor=1.5)
    assert low < 0.0 < high
    assert low == pytest.approx(-high)


def test_later_values_are_compared_with_the_earlier_control():
    """The stratum without a control of its own is set against all others' together."""
    comparison = Comparison(0.02)
    for stratum, mean in ((0, 0.0), (1, 1.0)):
        for _ in range(1_000):
            comparison.add("control", mean, stratum=stratum)
    for _ in range(1_000):
        comparison.add("treated", 0.0, stratum=2)
    low, high = comparison.against_earlier(2, 0.01)
    assert (low + high) / 2 == pytest.approx(-0.5)
    assert comparison.against_earlier(7, 0.01) == (-math.inf, math.inf)


def test_a_state_carries_everything():
    """Loaded into another comparison it goes on as the first would have."""
    rng, one, other = np.random.default_rng(4), Comparison(0.02), Comparison(0.02)
    for i in range(500):
        one.add("treated" if i % 3 else "control", float(rng.random()), stratum=i % 2, weight=0.5 + rng.random())
    other.load(one.state())
    for comparison in (one, other):
        comparison.add("treated", 0.3, stratum=1)
    assert other.state() == one.state()
    assert other.interval() == one.interval()
    assert other.summary(0.01) == one.summary(0.01)
    with pytest.raises(SnapshotMismatch):
        other.load([[0.0, 1.0]])


def test_a_resolution_is_above_zero():
    """Zero would never be resolved."""
    with pytest.raises(InvalidInput, match="resolution"):
        Comparison(0.0)
