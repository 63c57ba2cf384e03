"""Upper bounds of one request's cost and latency: which ratios they rest on, by hand."""

from __future__ import annotations

from math import ceil, exp, log

import numpy as np
import pytest
from scipy.stats import norm

from bandit.bounds import COST, LATENCY, Bounds

EXPECTED = np.array([0.01, 0.02]), np.array([1.0, 2.0])
LOG_SD = np.array([[0.5, 1.0], [0.2, 0.0]])


def taught(ratios, row=LATENCY, arm=0):
    bounds = Bounds(2)
    for ratio in ratios:
        bounds.observe(row, arm, ratio)
    return bounds


def test_with_fewer_than_three_outcomes_it_is_the_lognormals_median():
    """The mean of a lognormal over its median is exp(s²/2)."""
    for bounds in (Bounds(2), taught([3.0, 3.0])):
        cost, latency = bounds.of(*EXPECTED, LOG_SD)
        np.testing.assert_allclose(cost, [0.01 * exp(-0.125), 0.02 * exp(-0.5)])
        np.testing.assert_allclose(latency, [1.0 * exp(-0.02), 2.0])


def test_with_few_outcomes_the_quantile_is_that_of_a_lognormal():
    for n in (3, 38):  # of 38, the later 19 are usable: one short of having one that 95 % lie below
        _, latency = taught([0.7] * n).of(*EXPECTED, LOG_SD)
        assert latency[0] == pytest.approx(exp(0.2 * norm.ppf(0.95) - 0.02), rel=1e-4)
        assert latency[1] == pytest.approx(2.0)


def test_with_enough_it_is_that_of_the_later_half_of_the_ratios():
    """Of 40, the later 20: their ⌈0.95·21⌉ = 20th smallest. The early ones, however wrong, are forgotten."""
    ratios = [9.0] * 20 + [0.01 * i for i in range(20)]
    _, latency = taught(ratios).of(*EXPECTED, LOG_SD)
    assert latency[0] == pytest.approx(exp(0.19))


def test_of_many_it_is_that_of_the_last_256():
    rng = np.random.default_rng(0)
    ratios = rng.standard_normal(2_000)  # 2,000 is a multiple of 8: looked at after the last
    expected = np.sort(ratios[-256:])[ceil(0.95 * 257) - 1]
    assert taught(ratios).of(*EXPECTED, LOG_SD)[1][0] == pytest.approx(exp(expected))


def test_an_unknown_cost_stays_unknown():
    cost, latency = taught([0.1] * 50, COST).of(np.array([np.nan, 0.02]), EXPECTED[1], LOG_SD)
    assert np.isnan(cost[0])
    assert np.isfinite([cost[1], *latency]).all()
    assert np.isnan(Bounds(2).worst_cost(np.array([np.nan, 1.0]), LOG_SD)[0])


def test_the_worst_cost_is_half_as_much_again_as_the_largest_ratio():
    ratios = [5.0] * 30 + [0.0] * 29 + [0.4]
    assert taught(ratios, COST).worst_cost(EXPECTED[0], LOG_SD)[0] == pytest.approx(0.01 * 1.5 * exp(0.4))


def test_with_few_outcomes_the_worst_cost_is_no_less_than_the_lognormals_quantile():
    quantile = exp(norm.ppf(0.95) * 0.5 - 0.125)
    for largest, factor in ((0.1, quantile), (2.0, exp(2.0))):
        worst = taught([0.0] * 5 + [largest], COST).worst_cost(EXPECTED[0], LOG_SD)[0]
        assert worst == pytest.approx(0.01 * 1.5 * factor, rel=1e-4)


def test_a_newcomer_far_from_what_was_expected_is_not_ruled_out_for_long():
    """Expected at a 75th of what it costs, and learned within ten calls: the worst cost follows."""
    ratios = [log(75) * 0.6**i for i in range(20)]
    assert taught(ratios, COST).worst_cost(EXPECTED[0], LOG_SD * 0)[0] < 0.01 * 1.5 * 1.04


def test_arms_and_rows_do_not_mix_and_a_state_round_trips():
    bounds = taught(np.linspace(0, 1, 60), COST, 1)
    for ratio in (0.1, 0.2, 0.3):
        bounds.observe(LATENCY, 0, ratio)
    other = Bounds(2)
    other.load(bounds.state())
    assert other.state() == bounds.state()
    assert bounds.state()[LATENCY][0] == [3.0, 0.1, 0.2, 0.3]
    assert bounds.state()[COST][0] == [0.0]
    for mine, its in zip(bounds.of(*EXPECTED, LOG_SD), other.of(*EXPECTED, LOG_SD), strict=True):
        np.testing.assert_array_equal(mine, its)
    other.load([[[], []], [[], []]])
    assert other.state() == Bounds(2).state()
