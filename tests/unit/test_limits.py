"""Which limits exist, and which calls are bad under each."""

from __future__ import annotations

import pytest

from bandit import Constraints, Outcome
from bandit.errors import InvalidInput
from bandit.limits import bad_call, limits_of
from bandit.posterior import LATENCY, QUALITY

ALL = Constraints(p95_latency_s=2.0, p95_time_to_first_token_s=0.5, max_error_rate=0.02, min_accuracy=0.8)
SLOW, FIRST, ERRORS, ACCURACY = limits_of(ALL)


def outcome(status="ok", latency_s=None, first=None, http_status=None):
    return Outcome("d", 0.0, "m", status, latency_s, time_to_first_token_s=first, http_status=http_status)


def test_limits_are_rates_of_bad_calls():
    assert [(limit.kind, limit.bound, limit.head) for limit in limits_of(ALL)] == [
        ("p95_latency_s", 2.0, LATENCY),
        ("p95_time_to_first_token_s", 0.5, LATENCY),
        ("max_error_rate", 0.02, None),
        ("min_accuracy", 0.8, QUALITY),
    ]
    assert [limit.rate for limit in limits_of(ALL)] == pytest.approx([0.05, 0.05, 0.02, 0.2])
    assert limits_of(Constraints()) == ()
    assert [limit.kind for limit in limits_of(Constraints(max_error_rate=0.1))] == ["max_error_rate"]


# columns: under the latency limit of 2 s, the first-token limit of 0.5 s, the error limit
CASES = [
    (outcome("ok", 2.0, 0.5), 0.0, 0.0, 0.0),  # at the limit is within it
    (outcome("ok", 2.1, 0.6), 1.0, 1.0, 0.0),
    (outcome("ok"), None, None, 0.0),  # not measured
    (outcome("timeout", 60.0), 1.0, 1.0, 1.0),
    (outcome("error", 0.1, http_status=500), 1.0, 1.0, 1.0),
    (outcome("error", 0.1, http_status=429), 1.0, 1.0, 1.0),
    (outcome("error"), 1.0, 1.0, 1.0),  # no answer at all
    (outcome("error", 0.1, http_status=400), None, None, None),  # the caller's own fault
    (outcome("error", 9.0, http_status=413), None, None, None),
    (outcome("cancelled", 1.9, 0.4), None, None, None),  # might have become either
    (outcome("cancelled", 2.1, 0.4), 1.0, None, None),  # was already too slow
    (outcome("cancelled", 1.0), None, 1.0, None),  # abandoned while its first token was overdue
    (outcome("cancelled", 0.4), None, None, None),
    (outcome("cancelled"), None, None, None),
]


@pytest.mark.parametrize(("result", "slow", "first", "error"), CASES)
def test_bad_calls(result, slow, first, error):
    assert [bad_call(limit, result) for limit in (SLOW, FIRST, ERRORS)] == [slow, first, error]
    assert bad_call(ACCURACY, result) is None  # judged by grades


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("p95_latency_s", 0.0),
        ("p95_time_to_first_token_s", -1.0),
        ("max_error_rate", 0.0),
        ("max_error_rate", 1.0),
        ("min_accuracy", 1.0),
        ("min_accuracy", float("nan")),
    ],
)
def test_limits_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidInput, match=field):
        Constraints(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [("latency_s", -0.1), ("latency_s", float("nan")), ("output_tokens", -1), ("cost_usd", float("inf"))],
)
def test_outcomes_out_of_range_are_refused(field, value):
    with pytest.raises(InvalidInput, match=field):
        Outcome(**({"decision_id": "d", "ts": 0.0, "model": "m", "status": "ok", "latency_s": 1.0} | {field: value}))
