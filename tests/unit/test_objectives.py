"""What callers got, against what a pool promises: which requests count for which objective."""

from __future__ import annotations

from asyncio import CancelledError

import pytest
from metered_calls import outcome
from pydantic import ValidationError

from serving.errors import (
    BudgetExhausted,
    CallerGone,
    DeadlineExceeded,
    InvalidRequest,
    NothingAvailable,
    NothingFeasible,
    RateLimited,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from serving.objectives import Objectives
from serving.slo_settings import SloSettings
from serving.store import StoreFull

SLO = SloSettings(availability=0.999, latency_s=2.0, latency_share=0.9, success_quality=0.7)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def objectives(clock):
    objectives = Objectives(clock)
    objectives.follow({"auto": SLO, "plain": None})
    return objectives


def counted(objectives, name, pool="auto"):
    """{label: value} of a family's samples of one pool."""
    (family,) = [family for family in objectives.collect() if family.name == f"pointsman_{name}"]
    rest = [({k: v for k, v in s.labels.items() if k != "pool"}, s) for s in family.samples if s.labels["pool"] == pool]
    return {next(iter(labels.values()), s.name): s.value for labels, s in rest if s.value}


def make(objectives, clock, took_s, ended=None, *, error=None, timeout_s=None, pool="auto"):
    try:
        with objectives.request(pool, clock.now, timeout_s) as served:
            clock.now += took_s
            if error is not None:
                raise error
            served.ended(ended)
    except type(error or ()):
        pass


OK = outcome()


@pytest.mark.parametrize(
    ("error", "result"),
    [
        (UpstreamError("a", "broke", 500), "failed"),
        (UpstreamError("a", "busy", 429), "failed"),  # its caller was not answered
        (UpstreamTimeout("a", 1.0), "failed"),
        (NothingAvailable("none", [], 1.0), "failed"),
        (NothingFeasible("none"), "failed"),
        (DeadlineExceeded(120.0, []), "failed"),
        (Unavailable("stopping"), "failed"),
        (StoreFull(10, 10), "failed"),
        (RuntimeError("nobody foresaw it"), "failed"),
        (UpstreamRefused("a", 400, {}), "refused"),
        (InvalidRequest("no"), "refused"),
        (BudgetExhausted("spent", {}), "refused"),
        (RateLimited("slow down", 1.0), "refused"),
        (CallerGone("left"), "cancelled"),
        (CancelledError(), "cancelled"),
        (ConnectionResetError(), "cancelled"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else value,
)
def test_what_an_error_is_to_an_objective(objectives, clock, error, result):
    """A caller's own doing burns no budget; what kept it from an answer does."""
    make(objectives, clock, 0.5, error=error)
    assert counted(objectives, "requests") == {result: 1}
    about = 1 if result == "failed" else 0
    assert counted(objectives, "slo_requests") == ({"availability": about} if about else {})
    assert counted(objectives, "slo_bad_requests") == ({"availability": about} if about else {})


def test_an_answer_counts_for_both_objectives_and_is_bad_where_it_is_late(objectives, clock):
    for took_s in (0.5, 2.0, 2.1):  # at the limit is in time
        make(objectives, clock, took_s, OK)
    assert counted(objectives, "requests") == {"ok": 3}
    assert counted(objectives, "slo_requests") == {"availability": 3, "latency": 3}
    assert counted(objectives, "slo_bad_requests") == {"latency": 1}
    assert counted(objectives, "slo_target_ratio") == {"availability": 0.999, "latency": 0.9}


def test_who_leaves_when_it_is_late_was_let_down_and_who_leaves_before_was_not(objectives, clock):
    make(objectives, clock, 1.0, error=CancelledError())
    make(objectives, clock, 3.0, error=CancelledError())
    assert counted(objectives, "requests") == {"cancelled": 2}
    assert counted(objectives, "slo_requests") == {"latency": 1}
    assert counted(objectives, "slo_bad_requests") == {"latency": 1}


@pytest.mark.parametrize(("timeout_s", "result"), [(None, "failed"), (1.0, "cancelled"), (2.0, "failed")])
def test_a_deadline_shorter_than_what_is_promised_is_the_callers_own(objectives, clock, timeout_s, result):
    make(objectives, clock, 1.0, error=DeadlineExceeded(1.0, []), timeout_s=timeout_s)
    assert counted(objectives, "requests") == {result: 1}


def test_a_stream_is_there_with_its_first_event_however_long_it_goes_on(objectives, clock):
    with objectives.request("auto", clock.now) as served:
        clock.now += 0.5
        served.answered()
        clock.now += 60.0
        served.answered()
        served.ended(OK)
    assert counted(objectives, "slo_bad_requests") == {}


@pytest.mark.parametrize(
    ("ended", "result"),
    [
        (None, "cancelled"),
        (outcome(status="cancelled", error="caller_went_away"), "cancelled"),
        (outcome(status="cancelled", error="deadline_exceeded"), "failed"),
        (outcome(status="error", error="upstream_disconnected"), "failed"),
        (outcome(status="timeout"), "failed"),
    ],
)
def test_a_stream_that_broke_off_was_no_answer(objectives, clock, ended, result):
    make(objectives, clock, 0.5, ended)
    assert counted(objectives, "requests") == {result: 1}


def test_without_objectives_requests_are_counted_all_the_same(objectives, clock):
    make(objectives, clock, 0.5, OK, pool="plain")
    make(objectives, clock, 0.5, OK, pool="a-model-by-its-name")
    assert counted(objectives, "requests", "plain") == {"ok": 1}
    for name in ("slo_requests", "slo_target_ratio"):
        assert counted(objectives, name, "plain") == {}
    assert counted(objectives, "requests", "a-model-by-its-name") == {}


def test_objectives_start_at_zero_so_that_the_first_failure_is_an_increase(objectives):
    (bad,) = [family for family in objectives.collect() if family.name == "pointsman_slo_bad_requests"]
    assert [sample.value for sample in bad.samples] == [0, 0]


def test_what_was_counted_of_a_pool_that_stays_stays(objectives, clock):
    make(objectives, clock, 0.5, OK)
    objectives.follow({"auto": SloSettings(latency_s=0.1), "new": None})
    make(objectives, clock, 0.5, OK)
    assert counted(objectives, "requests") == {"ok": 2}
    assert counted(objectives, "slo_bad_requests") == {"latency": 1}
    assert counted(objectives, "requests", "plain") == {}
    assert objectives.success_quality("auto") is None


def test_a_share_of_latency_needs_a_latency():
    with pytest.raises(ValidationError, match="goes with latency_s"):
        SloSettings(latency_share=0.9)
    assert SloSettings(latency_s=1.0).latency_share == 0.95
