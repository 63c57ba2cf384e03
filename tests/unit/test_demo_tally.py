"""What the demo adds up, and how it reads the service's log."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from evaluation.demo_pool import Expected, simulated_pool
from evaluation.demo_tally import Event, Tally, event_from_log
from evaluation.traffic import Answered, Failure

STARTED_S = 1000.0
QUALITY = {"wren-tiny": 0.2, "summit-max": 1.0, "atlas-large": 0.9}


@pytest.fixture
def tally():
    """A pool whose truth is plain: summit-max is slow for all, wren-tiny wrong, the rest cost 1 cent but atlas 5."""

    def expected(model, text, category, latency_factor, run):
        slow = 1.0 if model == "summit-max" or latency_factor > 1.0 else 0.0
        return Expected(QUALITY.get(model, 0.8), 0.05 if model == "atlas-large" else 0.01, slow)

    return Tally(replace(simulated_pool(), expected=expected), STARTED_S)


def answered(model, sent_s, latency_s, quality=1.0, cost_usd=0.01):
    sent_at_s = STARTED_S + sent_s
    return Answered(sent_at_s, sent_at_s + latency_s, "[chat] x", "chat", model, "pm-0", quality, cost_usd)


def row(tally, model, *window):
    return next(row for row in tally.rows(*window) if row.name == model)


def test_rows_count_the_answers_of_their_window(tally):
    for second in range(10):
        tally.add(answered("oak-medium" if second < 5 else "reed-coder", second, 0.1, quality=second % 2))
    oak = row(tally, "oak-medium")
    assert (oak.calls, oak.share, oak.quality, oak.cost_per_1000_usd) == (5, 0.5, 0.4, pytest.approx(10.0))
    assert oak.p95_s == pytest.approx(0.1)
    assert row(tally, "oak-medium", 5.0).calls == 0
    assert row(tally, "oak-medium", 5.0).quality is None
    assert row(tally, "reed-coder", 5.0, 7.0).share == 1.0


def test_a_price_that_is_unknown_makes_the_cost_unknown(tally):
    tally.add(answered("oak-medium", 0, 0.1, cost_usd=None))
    tally.add(answered("oak-medium", 1, 0.1))
    assert tally.cost_usd() is None
    assert row(tally, "oak-medium").cost_per_1000_usd is None
    assert tally.compared().saving is None


def test_the_best_single_model_is_the_most_accurate_that_keeps_the_limits(tally):
    """Ten calls at 1 cent against 5 cents on atlas-large: 80 % saved; summit-max is better but slow."""
    for second in range(10):
        tally.add(answered("oak-medium", second, 0.1, quality=0.8))
    compared = tally.compared()
    assert (compared.single, compared.keeps, compared.single_quality) == ("atlas-large", True, pytest.approx(0.9))
    assert compared.saving == pytest.approx(0.8)
    assert tally.compared(8.0).calls == 2
    assert tally.compared(50.0) is None


def test_a_model_that_is_slow_for_over_five_percent_of_the_run_is_no_best_single_model(tally):
    for second in range(20):
        tally.factors = {"atlas-large": 8.0} if second < 2 else {}
        tally.add(answered("oak-medium", second, 0.1, quality=0.8))
    assert tally.compared().single in ("oak-medium", "reed-coder", "heron-math")


def test_without_a_model_that_keeps_the_limits_the_most_accurate_is_taken_and_said_so(tally):
    tally.factors = dict.fromkeys(tally.pool.source.models, 8.0)
    tally.add(answered("oak-medium", 0, 0.1))
    assert (tally.compared().single, tally.compared().keeps) == ("summit-max", False)


def test_calls_of_an_episode_are_told_apart_by_when_they_were_sent_and_came_back(tally):
    """Sent at 1, 2 and 3 s, back after 1.5 s each: by 4 s two are back and one is under way."""
    for second in (1, 2, 3):
        tally.add(answered("oak-medium", second, 1.5))
    assert tally.sent_to("oak-medium", 1.0, 4.0) == 3
    assert tally.back_from("oak-medium", 1.0, 4.0) == 2


def test_failures_are_counted_apart(tally):
    tally.add(Failure(STARTED_S, "status 503"))
    assert (tally.calls, tally.failures, tally.last_failure) == (0, 1, "status 503")
    assert (tally.p95_s(), tally.compared(), tally.cost_usd()) == (None, None, 0.0)


TRANSITION = {
    "ts": 1021.0,
    "pool": "auto",
    "model": "oak-medium",
    "constraint_name": "p95_latency_s",
    "from_state": "admitted",
    "to_state": "filtered",
    "reason": "change detected",
    "calls": 229,
    "rate": 0.026,
    "limit_rate": 0.05,
    "evidence": 1e6,
}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({}, "admitted → filtered, change detected: 2.6% of 229 slow"),
        ({"constraint_name": "min_accuracy"}, "admitted → filtered, change detected: 2.6% of 229 wrong"),
        ({"calls": 0, "rate": None}, "admitted → filtered, change detected"),
    ],
)
def test_a_transition_is_read_from_the_services_log(change, text):
    line = "2026-01-01 00:00:00,000 INFO pointsman.learner: standing changed: " + json.dumps(TRANSITION | change)
    assert event_from_log(line, 1000.0) == Event(21.0, "oak-medium", text, "filtered")
    assert event_from_log(f"{line} request_id=abc", 1000.0) == event_from_log(line, 1000.0)


def test_drift_is_read_from_the_services_log():
    """A change of ln 8 in log latency is a factor of eight."""
    drift = {"ts": 1001.5, "model": "m", "constraint_name": "latency", "reason": "drift", "evidence": 2.0794415}
    event = event_from_log("x standing changed: " + json.dumps(drift), 1000.0)
    assert event == Event(1.5, "m", "drift in latency: × 8 against predictions")


@pytest.mark.parametrize(
    "line", ["", "INFO pointsman: replayed 0 events", "standing changed: {", "standing changed: []"]
)
def test_other_lines_are_no_events(line):
    assert event_from_log(line, 0.0) is None
