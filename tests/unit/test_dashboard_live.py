"""The fold that the dashboard shows: its sums by hand, what it leaves out, and that a restart changes none."""

from __future__ import annotations

import asyncio

import numpy as np
import orjson
import pytest

from bandit.snapshot import dumps, loads
from bandit.types import Context, Decision, Feedback, Outcome
from serving.dashboard.feed import Feed
from serving.dashboard.live import Live
from serving.errors import Overloaded, UnknownModel
from serving.records import Labels, Record, change_event
from serving.store import Event

T0 = 1_800_000_000.0


def decided(live, chosen, i, mode="bandit", pool="auto"):
    nobody = np.zeros(0, dtype=np.float32)
    decision = Decision(
        f"pm-{i}",
        T0 + i,
        pool,
        mode,
        i,
        Context(nobody, "v", 5),
        "p",
        ("a", "b"),
        np.array([True, True]),
        np.array([0.9, 0.1]),
        chosen,
        0.9,
        np.array([0.5, 0.75]),
        np.array([0.01, 0.03]),
        np.array([0.1, 0.2]),
    )
    record = Record(decision, labels=Labels())
    live.decided(record)
    return record


def came(live, record, cost_usd, *, status="ok", attempt=0, model=None):
    i, served = record.decision.step, model or record.decision.chosen
    outcome = Outcome(
        f"pm-{i}", T0 + i, served, status, 0.1, input_tokens=5, output_tokens=7, cost_usd=cost_usd, attempt=attempt
    )
    record.outcome = outcome
    live.outcome(record, outcome)


def graded(live, record, quality, revises=None):
    feedback = Feedback(record.decision.decision_id, T0 + record.decision.step, quality, revises=revises)
    live.feedback(record, feedback)
    record.feedback = feedback


@pytest.fixture
def live():
    """Three routed calls, one of which fell back from a to b; a shadow; a pinned call."""
    live = Live(["auto"])
    one, two, three = decided(live, "a", 1), decided(live, "a", 2), decided(live, "b", 3)
    came(live, one, 0.1)
    came(live, two, None, status="error")
    came(live, two, 0.2, attempt=1, model="b")
    came(live, three, 0.2)
    came(live, decided(live, "b", 4, mode="shadow"), 0.4)
    came(live, decided(live, "a", 5, mode="pinned", pool="a"), 0.8)
    graded(live, one, 1.0)
    graded(live, three, 1.0)
    graded(live, three, 0.5, revises=1.0)
    return live


def test_totals_are_those_of_the_log(live):
    """Every attempt costs; a call is counted once; a failed attempt is counted where it failed."""
    total, everything = live.total("auto"), live.everything()
    assert (total["calls"], total["attempts"], total["failed"], total["cost_usd"]) == (4, 5, 1, 0.9)
    assert (everything["calls"], everything["cost_usd"]) == (5, 1.7)
    assert live.models("auto")["b"]["attempts"] == 3
    assert live.since == T0 + 1


def test_a_revision_replaces_what_it_revises_in_the_totals(live):
    assert live.models("auto")["b"]["quality"][0] == 0.5
    assert live.total("auto")["quality"][0] == 0.75
    assert live.total("auto")["quality"][3] == 2


def test_single_models_are_compared_on_the_calls_that_were_answered(live):
    """Three routed answers, at 0.01 and 0.03 each; the shadow's cost is none of theirs."""
    alone = live.alone("auto")
    assert (alone["answered"], alone["cost_usd"]) == (3, 0.5)
    assert alone["models"]["a"] == {"calls": 3, "cost_usd": pytest.approx(0.03), "quality": 0.5}
    assert alone["models"]["b"] == {"calls": 3, "cost_usd": pytest.approx(0.09), "quality": 0.75}


def test_series_count_shares_of_routed_calls_alone(live):
    shown = live.series("auto").coarse()[-1].shown()
    assert shown["routed"] == {"a": 2, "b": 1}
    assert (shown["attempts"], shown["failed"]) == (5, 1)
    assert shown["cost_usd"] == pytest.approx(0.9)


def test_the_last_minute_is_a_minute_however_few_calls_came():
    live = Live(["auto"])
    for i in range(0, 600, 30):
        came(live, decided(live, "a", i), 0.01)
    series = live.series("auto")
    assert series.since(T0 + 599 - 60).shown()["attempts"] == 2
    assert series.since(T0 + 3600 - 60).shown()["attempts"] == 0


def test_a_state_comes_back_as_it_was(live):
    again = Live(["auto"])
    live.witness(change_event({"ts": T0, "subject": "traffic", "what": "weights", "pool": "auto", "after": {"a": 1.0}}))
    again.load(loads(dumps(live.state())))
    for name in ("auto", "a"):
        assert again.total(name) == live.total(name)
        assert again.models(name) == live.models(name)
    assert again.alone("auto") == live.alone("auto")
    assert again.timeline.last(10) == live.timeline.last(10)
    assert again.since == live.since


# --- the time line


def event(kind, **row):
    return Event(kind, "", row["ts"], orjson.dumps(row))


def filtered(to_state, ts):
    return event(
        "filter_event",
        ts=ts,
        pool="auto",
        model="a",
        constraint_name="p95_latency_s",
        from_state="unknown",
        to_state=to_state,
        reason="proved violating",
        calls=40,
        rate=0.5,
        limit_rate=0.05,
        evidence=9.0,
    )


def opened(ts):
    row = {"subject": "breakers", "what": "open", "pool": None, "model": "c", "by": None, "reason": "1"}
    return event("change", ts=ts, before="closed", after="open", **row)


def test_the_time_line_tells_what_had_held_at_a_moment():
    line = Live(["auto"]).timeline
    line.witness(filtered("filtered", T0))
    line.witness(filtered("probing", T0 + 10))
    assert line.standing("auto", "a", T0 - 1) is None
    assert line.standing("auto", "a", T0 + 5)["to_state"] == "filtered"
    assert line.standing("auto", "a", T0 + 15)["to_state"] == "probing"
    assert "50.0% of 40 calls broke the limit on p95 latency; 5.0% are allowed" in line.last(1)[0]["detail"]


def test_the_time_line_knows_what_was_switched_off_and_broken():
    line = Live(["auto"]).timeline
    change = {"subject": "traffic", "pool": "auto", "model": None, "before": [], "by": "admin", "reason": None}
    line.witness(event("change", ts=T0, what="disabled", after=["a"], **change))
    line.witness(event("change", ts=T0 + 5, what="disabled", after=[], **change))
    everywhere = change | {"pool": None, "model": "b", "before": False}
    line.witness(event("change", ts=T0, what="model_disabled", after=True, **everywhere))
    line.witness(opened(T0))
    assert (line.disabled("auto", "a", T0 + 1), line.disabled("auto", "a", T0 + 6)) == (True, False)
    assert (line.disabled("auto", "b", T0 + 1), line.disabled("auto", "c", T0 + 1)) == (True, False)
    assert (line.broken("c", T0 + 1), line.broken("a", T0 + 1)) == (True, False)


def test_the_time_line_tells_a_key_by_what_happened_to_it_alone():
    line = Live(["auto"]).timeline
    row = {"ts": T0, "subject": "keys", "what": "key_created", "pool": None, "model": None, "by": "admin"}
    line.witness(
        event("change", before=None, after={"id": "k1", "user": "ada"}, secrets=["digest"], reason=None, **row)
    )
    (entry,) = line.last(5)
    assert (entry["kind"], entry["detail"]) == ("key", "")
    assert "digest" not in str(entry)


def test_what_is_new_is_told_once_and_the_line_is_bounded():
    line = Live(["auto"]).timeline
    for i in range(600):
        line.witness(opened(T0 + i))
    assert line.count == 600
    assert [entry["ts"] - T0 for entry in line.since(598)] == [598, 599]
    assert line.since(600) == []
    assert len(line.last(1000)) == 500
    assert line.last(3, pool="other")[0]["model"] == "c"  # of no pool in particular


# --- the feed


class _Figures:
    """Views of a pool that has nothing to say but how often it was asked."""

    names = ("auto",)

    def __init__(self):
        self.live, self.asked = Live(["auto"]), 0

    def first(self, pool, _now):
        return {"first": pool}

    def next(self, *_):
        self.asked += 1
        return {"asked": self.asked}

    def look_at_breakers(self, _now):
        pass


async def test_a_listener_that_is_too_slow_is_let_go_and_others_are_told_the_same_bytes():
    figures = _Figures()
    feed = Feed(max_listeners=2, unforeseen=pytest.fail)
    feed.show(figures, 2)
    with feed.listen(None) as slow, feed.listen("auto") as quick:
        assert b'"first":"auto"' in await anext(quick)
        for i in range(40):
            feed._tick(T0, 0)
            assert f'"asked":{i + 1}'.encode() in await anext(quick)
        assert [event async for event in slow] == []  # what it had not read is old by now
        assert figures.asked == 40  # once a tick, however many listen
        feed.close()
        assert [event async for event in quick] == []
    with pytest.raises(Overloaded), feed.listen("auto"):
        pass
    with pytest.raises(UnknownModel), feed.listen("nowhere"):
        pass


async def test_an_error_nobody_foresaw_is_counted_and_the_next_second_is_told(monkeypatch):
    monkeypatch.setattr("serving.dashboard.feed._EVERY_S", 0.01)

    class Failing(_Figures):
        def next(self, *_):
            if self.asked == 0:
                self.asked = 1
                raise RuntimeError("nobody foresaw it")
            return super().next()

    seen, figures = [], Failing()
    feed = Feed(1, lambda: seen.append(1))
    feed.show(figures, 1)
    running = asyncio.create_task(feed.run())
    try:
        with feed.listen("auto") as events:
            await anext(events)
            assert b'"asked":2' in await asyncio.wait_for(anext(events), 10)
    finally:
        running.cancel()
    assert seen == [1]
