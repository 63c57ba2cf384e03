"""Limits of requests and tokens a minute, by hand: a bucket of 60 gets one a second."""

from __future__ import annotations

import pytest
from metered_calls import ALICE, BOB, NOON, at_once, limit

from serving.access.principal import Principal
from serving.access.rates import Rates
from serving.errors import RateLimited, Unavailable


def test_requests_fill_up_evenly_over_a_minute():
    rates = Rates([limit(requests_per_minute=60)])
    for _ in range(60):
        at_once(rates.take(ALICE, 5, NOON))
    with pytest.raises(RateLimited) as refusal:
        at_once(rates.take(ALICE, 5, NOON + 0.5))
    assert refusal.value.retry_after == "1"
    assert refusal.value.headers == {
        "x-ratelimit-limit-requests": "60",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "59.500s",
    }
    at_once(rates.take(ALICE, 5, NOON + 1.0))
    at_once(rates.take(BOB, 5, NOON + 1.0))


def test_tokens_are_taken_by_an_estimate_and_put_right():
    """Of 600 a minute 100 are estimated and 40 used; then 560 are left, and 10 a second flow in."""
    rates = Rates([limit(tokens_per_minute=600)])
    taken = at_once(rates.take(ALICE, 100, NOON))
    assert taken.headers["x-ratelimit-remaining-tokens"] == "500"
    rates.settle(taken, 40, NOON)
    rates.settle(taken, 40, NOON)
    assert at_once(rates.take(ALICE, 0, NOON)).headers["x-ratelimit-remaining-tokens"] == "560"
    rates.settle(at_once(rates.take(ALICE, 0, NOON)), 1_160, NOON)
    with pytest.raises(RateLimited) as refusal:
        at_once(rates.take(ALICE, 60, NOON))
    assert refusal.value.retry_after == "66", "600 are owed, and 60 needed"


def test_a_call_of_more_than_a_minute_goes_when_the_bucket_is_full():
    rates = Rates([limit(tokens_per_minute=100)])
    rates.settle(at_once(rates.take(ALICE, 250, NOON)), 250, NOON)
    for after_s in (0.0, 89.0, 149.0):
        with pytest.raises(RateLimited):
            at_once(rates.take(ALICE, 250, NOON + after_s))
    at_once(rates.take(ALICE, 250, NOON + 150.0))


def test_a_refused_call_takes_from_no_bucket():
    rates = Rates([limit(requests_per_minute=10), limit(scope="all", tokens_per_minute=100)])
    with pytest.raises(RateLimited, match="tokens"):
        [at_once(rates.take(BOB, 100, NOON)), at_once(rates.take(ALICE, 50, NOON))]
    assert at_once(rates.take(ALICE, 0, NOON)).headers["x-ratelimit-remaining-requests"] == "9"


def test_of_several_limits_the_headers_show_the_one_with_the_least_left():
    rates = Rates([limit(requests_per_minute=10), limit(scope="team", requests_per_minute=3)])
    assert at_once(rates.take(ALICE, 0, NOON)).headers["x-ratelimit-limit-requests"] == "3"


def test_whoever_no_limit_is_about_sees_none():
    rates = Rates([limit(match="alice", requests_per_minute=1)])
    assert at_once(rates.take(BOB, 10**9, NOON)).headers == {}


def test_members_are_bounded_and_only_a_full_bucket_is_forgotten():
    rates = Rates([limit(requests_per_minute=60)], max_counters=2)
    at_once(rates.take(Principal("a"), 0, NOON))
    at_once(rates.take(Principal("b"), 0, NOON))
    with pytest.raises(Unavailable):
        at_once(rates.take(Principal("c"), 0, NOON + 0.5))
    at_once(rates.take(Principal("c"), 0, NOON + 1.0))
