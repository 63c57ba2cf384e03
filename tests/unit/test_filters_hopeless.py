"""When the beliefs about all arms leave little hope that any keeps its limits."""

from __future__ import annotations

from math import log

import numpy as np
import pytest
from scipy.stats import beta

from bandit.filters import Filters

R0 = 0.05
HALF_LIFE_CALLS = 150  # of the belief of compliance, as documented
LIMITS = (("p95_latency_s", R0),)
RECOVERED = 22  # good probes in a row that bring a filtered arm back, as documented


def feed(filters, arm, calls, limit=0):
    for bad in calls:
        filters.observe(arm, limit, bad)


def doubt(calls):
    """1 − P(rate ≤ r0) from 0/1 calls faded by their age; the prior is Beta(1, b) with its median at r0."""
    weights = 0.5 ** (np.arange(len(calls) - 1, -1, -1.0) / HALF_LIFE_CALLS)
    bad = weights @ np.array(calls)
    return beta.sf(R0, 1 + bad, log(0.5) / log(1 - R0) + weights.sum() - bad)


@pytest.mark.parametrize("good", range(3, 30))
def test_it_is_hopeless_where_the_product_of_doubts_is_above_80_percent(good):
    """Two bad calls among a growing number of good ones, so that nothing is proved of either arm."""
    one, two = [1.0, 0.0, 0.0, 1.0, *[0.0] * (good - 2)], [0.0, 1.0, 0.0, 1.0, *[0.0] * (good - 2)]
    filters = Filters(2, LIMITS)
    feed(filters, 0, one)
    feed(filters, 1, two)
    assert filters.states == ("unknown", "unknown")
    assert filters.hopeless == (doubt(one) * doubt(two) > 0.8)
    assert good > 3 or filters.hopeless
    assert good < 29 or not filters.hopeless


def test_an_arm_with_fewer_than_five_calls_on_a_limit_is_hope():
    filters = Filters(2, (*LIMITS, ("min_accuracy", 0.2)))
    assert not filters.hopeless
    feed(filters, 0, [1.0] * 3)
    feed(filters, 1, [0.0] * 9)
    for bad, hopeless in ((1.0, False), (0.0, False), (1.0, False), (0.0, False), (1.0, True)):
        feed(filters, 1, [bad], limit=1)
        assert filters.hopeless == hopeless
    assert filters.states == ("filtered", "unknown")


def test_an_arm_on_probation_is_hope_until_it_has_been_tried_anew():
    """Its evidence starts again with its return, and four calls say little."""
    filters = Filters(1, LIMITS)
    feed(filters, 0, [1.0] * 3)
    assert filters.states == ("filtered",)
    assert filters.hopeless
    feed(filters, 0, [0.0] * RECOVERED)
    assert filters.states == ("probing",)
    assert not filters.hopeless
    feed(filters, 0, [0.0, 0.0, 0.0, 1.0])
    assert not filters.hopeless


def test_one_good_arm_is_enough_and_hope_survives_a_snapshot():
    filters, other = Filters(2, LIMITS), Filters(2, LIMITS)
    feed(filters, 0, [1.0] * 3)
    feed(filters, 1, [0.0] * 20)
    assert not filters.hopeless
    feed(filters, 1, [1.0] * 10)
    assert filters.hopeless
    other.load(filters.state())
    assert other.hopeless


def test_without_limits_there_is_nothing_to_miss():
    assert not Filters(2, ()).hopeless
