"""Decisions as events and back, and the ids that say when they were made."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bandit import Arm, Decision, Feedback, Outcome, Pool, Prompt
from bandit.filters import Transition
from bandit.pool import DriftReset
from serving.admission import Principal
from serving.records import (
    DecisionIds,
    Labels,
    Record,
    decision_event,
    feedback_event,
    filter_event,
    made_at_s,
    outcome_event,
    record_from,
)

ADA = Principal("ada", "search", "paid")


@pytest.fixture
def decision():
    """Without prices, so that some predictions are unknown."""
    pool = Pool([Arm("a"), Arm("b")], name="auto")
    return pool.decide(Prompt(text="hi", category="c"), np.random.default_rng(1), decision_id="pm-1", ts=1.5)


def events_of(decision, *others):
    return [decision_event(decision, Labels(ADA, {"run": "7"})), *others]


@given(st.floats(0, 2.8e11))
def test_an_id_says_when_it_was_made(ts):
    """In 48 bits of milliseconds, which last until the year 10889."""
    decision_id = DecisionIds().new(ts)
    assert re.fullmatch(r"pm-[0-9a-f]{32}", decision_id)
    assert made_at_s(decision_id) == pytest.approx(ts, abs=0.001)


def test_ids_sort_by_time_and_are_not_repeated():
    """Also when the digits that were read ahead are used up, again and again."""
    ids = DecisionIds()
    made = [ids.new(float(ts)) for ts in range(350)]
    assert sorted(made) == made
    assert len({decision_id[-20:] for decision_id in made}) == 350
    assert {len(decision_id) for decision_id in made} == {35}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "pm-",
        "pm-" + "0" * 31,
        "pm-" + "0" * 33,
        "pm-" + "0" * 32 + "\n",
        "PM-" + "0" * 32,
        "pm-" + "A" * 32,
        "pm-" + "0" * 11 + "_" + "0" * 20,
        "pm-+" + "0" * 31,
        "pm-0x" + "0" * 30,
        "pm- " + "0" * 31,
        "pm-" + "\u0660" * 32,
        "0" * 35,
    ],
)
def test_what_is_no_id_of_ours_was_never_made(text):
    assert made_at_s(text) is None


@given(st.text())
def test_any_text_is_an_id_of_ours_or_none(text):
    assert made_at_s(text) is None


def test_a_decision_comes_back_from_its_event(decision):
    """Unknown predictions are null in between."""
    (event,) = events_of(decision)
    assert (event.kind, event.decision_id, event.ts) == ("decision", "pm-1", 1.5)
    row = orjson.loads(event.payload)
    assert row["predicted_cost_usd"] == [None, None]
    assert [row[name] for name in ("user", "team", "tier", "tags")] == ["ada", "search", "paid", {"run": "7"}]
    again = Decision.from_row(row)
    assert again.context.x.dtype == np.float32
    assert decision_event(again, Labels(ADA, {"run": "7"})).payload == event.payload


def test_a_record_is_made_of_a_decisions_events_in_order(decision):
    outcome = Outcome("pm-1", 2.0, "b", "ok", 0.25, input_tokens=3, output_tokens=5, stream=True)
    first = Feedback("pm-1", 3.0, 0.5, {"stars": 4.0})
    second = replace(first, quality=1.0, revision=1, revises=0.5)
    events = events_of(decision, outcome_event(outcome), feedback_event(first, 0.5), feedback_event(second, None))
    record = record_from(events)
    assert (record.outcome, record.feedback, record.in_flight) == (outcome, second, False)
    assert (record.served_by, record.failed) == ("b", False)
    assert record_from(events[:3]).feedback == first


def test_no_record_without_a_decision():
    """Its decision was pruned: what came later speaks of nothing any more."""
    assert record_from([]) is None
    assert record_from([outcome_event(Outcome("pm-1", 2.0, "b", "ok", 0.25))]) is None


@pytest.mark.parametrize(("status", "failed"), [("ok", False), ("error", True), ("timeout", True), ("cancelled", True)])
def test_only_an_answer_can_be_graded(decision, status, failed):
    assert Record(decision).failed is False
    assert Record(decision, Outcome("pm-1", 2.0, "b", status, 0.25)).failed is failed


def test_changes_of_standing_as_events():
    reset = orjson.loads(filter_event("auto", ["a", "b"], DriftReset(1, "latency", 0.75)).payload)
    assert {name: reset[name] for name in ("pool", "model", "constraint_name", "reason", "evidence")} == {
        "pool": "auto",
        "model": "b",
        "constraint_name": "latency",
        "reason": "drift",
        "evidence": 0.75,
    }
    move = Transition(0, "max_error_rate", "admitted", "filtered", "violating", 9, 1.0, 0.2, 123.0)
    event = filter_event("auto", ["a", "b"], move)
    row = orjson.loads(event.payload)
    assert (event.kind, event.decision_id, row.pop("ts")) == ("filter_event", "", event.ts)
    assert row == {
        "pool": "auto",
        "model": "a",
        "constraint_name": "max_error_rate",
        "from_state": "admitted",
        "to_state": "filtered",
        "reason": "violating",
        "calls": 9,
        "rate": 1.0,
        "limit_rate": 0.2,
        "evidence": 123.0,
    }
