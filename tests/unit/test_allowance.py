"""Which arms one request may use: within the caller's limits, and within what the budget has left."""

from __future__ import annotations

import numpy as np
import pytest

from bandit.allowance import known_cost, within_budget, within_limits
from bandit.errors import InvalidInput
from bandit.pacing import Pacer
from bandit.types import RequestLimits

NAN, INF = float("nan"), float("inf")
ALL = np.ones(3, dtype=np.bool_)


def limited(feasible=ALL, *, cost_usd=(0.001, 0.01, NAN), latency_s=(1.0, 2.0, 4.0), **limits):
    over = RequestLimits(**limits).excess(np.array(cost_usd), np.array(latency_s))
    return within_limits(feasible, over).tolist(), over


def test_the_excess_is_relative_and_the_worse_of_both():
    allowed, over = limited(max_cost_usd=0.002, max_latency_s=2.0)
    assert allowed == [True, False, False]
    np.testing.assert_allclose(over, [max(0.5 - 1, 0.5 - 1), 5.0 - 1, INF])


def test_an_unknown_cost_keeps_no_cost_limit_but_may_keep_a_latency_limit():
    assert not limited(max_cost_usd=1e3)[0][2]
    assert limited(max_latency_s=5.0)[0] == [True, True, True]


def test_where_none_keeps_the_limits_the_least_over_remains():
    allowed, over = limited(max_latency_s=0.5)
    assert allowed == [True, False, False]
    assert over[0] == pytest.approx(1.0)
    allowed, over = limited(np.array([False, True, True]), max_latency_s=0.5)
    assert allowed == [False, True, False]
    assert over[1] == pytest.approx(3.0)


def test_a_filtered_arm_within_the_limits_may_be_probed_but_does_not_stand_in_for_a_feasible_one():
    filtered = np.array([False, True, True])
    assert limited(filtered, max_latency_s=2.5)[0] == [True, True, False]
    assert limited(filtered, max_latency_s=1.5)[0] == [False, True, False]


@pytest.mark.parametrize("value", [0.0, -1.0, NAN, INF])
@pytest.mark.parametrize("field", ["max_cost_usd", "max_latency_s"])
def test_limits_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidInput, match=field):
        RequestLimits(**{field: value})
    assert not RequestLimits().set


def afforded(worst, expected=(0.01, 0.02, 0.03), *, feasible=ALL, allowed=ALL):
    """With 0.06 USD left: the bucket of a fresh budget of 0.01 a request."""
    return within_budget(
        feasible, allowed, Pacer(0.01), 0, worst_usd=np.array(worst), expected_usd=np.array(expected)
    ).tolist()


def test_arms_that_might_cost_more_than_is_left_are_not_affordable():
    assert afforded((0.05, 0.07, 0.055)) == [True, False, True]
    assert afforded((0.05, 0.07, NAN)) == [True, False, False]  # unknown counts as the dearest
    assert afforded((NAN, NAN, NAN)) == [True, True, True]  # nothing is known of any


def test_the_cheapest_arm_remains_when_nothing_is_affordable():
    assert afforded((0.5, 0.4, 0.3)) == [True, False, False]
    assert afforded((0.5, 0.4, 0.3), allowed=np.array([False, True, True])) == [False, True, False]
    assert afforded((0.5, 0.4, 0.3), (NAN, 0.02, 0.03)) == [False, True, False]


def test_a_filtered_arm_is_probed_only_where_it_is_affordable():
    filtered = np.array([False, True, True])
    assert afforded((0.05, 0.05, 0.5), feasible=filtered) == [True, True, False]
    assert afforded((0.5, 0.05, 0.05), feasible=filtered) == [False, True, True]
    assert afforded((0.05, 0.5, 0.5), feasible=filtered) == [False, True, False]  # it is no feasible one's stand-in


def test_unknown_costs_count_as_the_largest_known():
    np.testing.assert_array_equal(known_cost(np.array([1.0, NAN, 3.0])), [1.0, 3.0, 3.0])
    np.testing.assert_array_equal(known_cost(np.array([NAN, NAN])), [0.0, 0.0])
