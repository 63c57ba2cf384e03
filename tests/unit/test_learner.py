"""The learner on a store whose disk does as it is told: what is applied when, and what a restart finds."""

from __future__ import annotations

import contextlib
import gc
from dataclasses import replace

import numpy as np
import pytest

from bandit import Feedback, Outcome, Prompt
from bandit.posterior import LATENCY, QUALITY
from bandit.types import RequestLimits
from serving.errors import InvalidRequest, LimitsNotMet, NothingFeasible, Unavailable
from serving.records import Labels, model_event
from serving.roster import ADDED, REMOVED
from serving.store import StoreFailed, StoreFull, StoreUnusable


def decide(learner, ts=1000.0):
    """(record, the decision's durability)."""
    return learner.record_decision(learner.decide("auto", Prompt(text="which?"), ts), Labels())


def outcome(record, status="ok", model=None, **more):
    decision = record.decision
    known = {"latency_s": 0.5, "output_tokens": 10, "input_tokens": 10, "cost_usd": 0.0001} | more
    return Outcome(decision.decision_id, 1001.0, model or decision.chosen, status, **known)


def feedback(record, quality, **more):
    return Feedback(record.decision.decision_id, 1002.0, quality, **more)


def drive(learner, calls=40):
    for i in range(calls):
        record, _ = decide(learner)
        learner.note_outcome(record, outcome(record, "error" if i % 5 == 0 else "ok"))
        learner.record_feedback(record, feedback(record, i % 2))


def learned(learner):
    state = learner.pools["auto"].state()
    heads = {name: state["heads"][name].tolist() for name in ("gram", "moment", "square", "weight")}
    return heads, state["step"], state["standing"], state["newcomers"]


async def test_what_is_recorded_is_learned_at_once_and_durable_later(make_learner, held_store):
    learner = make_learner()
    record, decided = decide(learner)
    learner.note_outcome(record, outcome(record))
    durable = learner.record_feedback(record, feedback(record, 1.0))
    pool = learner.pools["auto"]
    assert (pool.step, pool.heads.weight[QUALITY].sum(), pool.heads.weight[LATENCY].sum()) == (1, 1.0, 1.0)
    assert (decided.done(), durable.done(), held_store.committed) == (False, False, [])
    held_store.commit()
    assert (decided.done(), durable.done()) == (True, True)
    assert [event.kind for event in held_store.committed] == ["decision", "outcome", "feedback"]


@pytest.mark.parametrize("snapshot_every", [1, 7, 10**9])
async def test_a_restart_finds_what_was_learned(make_learner, held_store, snapshot_every):
    """From the log alone, or from a snapshot and the events behind it."""
    learner = make_learner(snapshot_every_events=snapshot_every)
    drive(learner)
    held_store.commit()
    restarted = make_learner()
    replayed = restarted.recover()
    assert learned(restarted) == learned(learner)
    assert replayed == held_store.position - (held_store.snapshots[-1][0] if held_store.snapshots else 0)


async def test_an_event_that_cannot_be_read_stops_a_restart(make_learner, held_store):
    """To go on without it would be to learn something else than was learned; what it holds is not said."""
    drive(make_learner(), 3)
    held_store.commit()
    held_store.committed[2] = replace(held_store.committed[2], payload=b'{"secret')
    with pytest.raises(StoreUnusable, match=r"its event 3 \(\w+\) cannot be read") as caught:
        make_learner().recover()
    assert "secret" not in str(caught.value)


async def test_a_replay_takes_drift_from_the_log(make_learner, held_store):
    """A reset is an event of its own, because a detector that starts anew would not find it again."""
    learner = make_learner()
    for i in range(400):
        record, _ = decide(learner)
        learner.note_outcome(record, outcome(record))
        learner.record_feedback(record, feedback(record, 1.0 if i < 300 else 0.0))
    held_store.commit()
    resets = [e for e in held_store.committed if e.kind == "filter_event" and b'"reason":"drift"' in e.payload]
    assert resets
    restarted = make_learner()
    restarted.recover()
    assert learned(restarted) == learned(learner)


async def test_what_was_not_durable_is_as_if_it_had_not_been(make_learner, held_store):
    learner = make_learner()
    drive(learner, 10)
    held_store.commit()
    drive(learner, 5)
    held_store.waiting = []
    restarted, reference = make_learner(), make_learner()
    restarted.recover()
    assert restarted.pools["auto"].step == 10
    reference.recover()
    assert learned(restarted) == learned(reference)


async def test_a_replay_with_a_small_memory_learns_the_same(make_learner, held_store):
    """Decisions that have left it are found in the store, as they stood at the event that speaks of them."""
    learner = make_learner()
    records = [decide(learner)[0] for _ in range(30)]
    for i, record in enumerate(records):
        learner.note_outcome(record, outcome(record, "timeout" if i % 7 == 0 else "ok"))
    for i, record in enumerate(records):
        learner.record_feedback(record, feedback(record, i % 2))
    for record in records[::3]:
        old = record.feedback.quality
        learner.record_feedback(record, feedback(record, 0.5, revision=1, revises=old))
    held_store.commit()
    restarted = make_learner(cache_decisions=2)
    restarted.recover()
    assert learned(restarted) == learned(learner)


async def test_there_are_never_two_records_of_one_decision(make_learner, held_store):
    """However small the memory: a call under way and feedback for it speak of the same."""
    learner = make_learner(cache_decisions=1)
    record, _ = decide(learner)
    decision_id = record.decision.decision_id
    held_store.commit()
    for _ in range(5):
        decide(learner)
    assert learner.find(decision_id) is record
    learner.note_outcome(record, outcome(record, "timeout"))
    del record
    gc.collect()
    assert learner.find(decision_id).outcome.status == "timeout"  # not durable yet, so it is in no store


async def test_a_record_nobody_holds_is_found_in_the_store(make_learner, held_store):
    learner = make_learner(cache_decisions=1)
    record, _ = decide(learner)
    decision_id = record.decision.decision_id
    learner.note_outcome(record, outcome(record))
    learner.record_feedback(record, feedback(record, 0.25))
    held_store.commit()
    del record
    for _ in range(3):
        decide(learner)
    gc.collect()
    found = learner.find(decision_id)
    assert (found.outcome.status, found.feedback.quality) == ("ok", 0.25)
    assert learner.find("pm-unknown") is None


async def test_feedback_for_a_call_without_an_answer_is_logged_and_not_learned(make_learner, held_store):
    learner = make_learner()
    record, _ = decide(learner)
    learner.note_outcome(record, outcome(record, "error", http_status=500))
    before = learned(learner)
    learner.record_feedback(record, feedback(record, 1.0))
    assert learned(learner) == before
    assert [event.kind for event in held_store.waiting] == ["decision", "outcome", "feedback"]


async def test_a_pool_that_is_gone_is_logged_for_and_teaches_nobody(make_learner, held_store):
    learner = make_learner()
    drive(learner, 5)
    record, _ = decide(learner)
    held_store.commit()
    del learner.pools["auto"]
    learner.record_outcome(record, outcome(record))
    learner.record_feedback(record, feedback(record, 1.0))
    held_store.commit()
    restarted = make_learner()
    restarted.pools.clear()
    assert restarted.recover() == held_store.position


@pytest.mark.parametrize("what", ["full", "failed"])
async def test_what_cannot_be_recorded_is_not_learned(make_learner, held_store, what):
    learner = make_learner()
    record, _ = decide(learner)
    held_store.commit()
    before, position = learned(learner), held_store.position
    held_store.full, held_store.healthy = what == "full", what != "failed"
    expected = StoreFull if what == "full" else Unavailable
    for attempt in (
        lambda: decide(learner),
        lambda: learner.note_outcome(record, outcome(record)),
        lambda: learner.record_outcome(record, outcome(record)),
        lambda: learner.record_feedback(record, feedback(record, 1.0)),
    ):
        with pytest.raises(expected):
            attempt()
    assert (learned(learner), held_store.position) == (before, position)
    assert (record.outcome, record.feedback) == (None, None)


async def test_who_waits_is_told_when_the_disk_breaks(make_learner, held_store):
    learner = make_learner()
    _, durable = decide(learner)
    held_store.fail()
    with pytest.raises(StoreFailed):
        await durable
    assert not learner.healthy


async def test_a_snapshot_that_cannot_be_taken_stops_no_call(make_learner, held_store, caplog):
    """And is not taken for one that was: nothing behind the last sound one may be pruned."""
    learner = make_learner(snapshot_every_events=1)
    decide(learner)
    position, ts = learner.snapshot_position, learner.snapshot_ts
    held_store.snapshots_full = True
    decide(learner)
    assert (position, learner.snapshot_position, learner.snapshot_ts) == (1, 1, ts)
    assert "snapshot not taken" in caplog.text


async def test_a_restart_knows_when_the_last_snapshot_was_taken(make_learner, held_store):
    learner = make_learner()
    assert (learner.snapshot_position, learner.snapshot_ts) == (0, 0.0)
    drive(learner, 3)
    await learner.snapshot()
    held_store.commit()
    restarted = make_learner()
    assert restarted.recover() == 0
    assert restarted.snapshot_position == learner.snapshot_position == held_store.position
    assert restarted.snapshot_ts == learner.snapshot_ts > 0


async def test_a_damaged_snapshot_is_made_good_by_the_log(make_learner, held_store, caplog):
    learner = make_learner()
    drive(learner, 10)
    held_store.commit()
    held_store.snapshots.append((held_store.position, b"\x00 not a snapshot"))
    restarted = make_learner()
    assert restarted.recover() == held_store.position
    assert learned(restarted) == learned(learner)
    assert "cannot be read" in caplog.text


async def test_a_pool_that_shall_fail_says_so(make_learner):
    learner = make_learner()
    pool = learner.pools["auto"]
    object.__setattr__(pool.constraints, "on_infeasible", "fail")
    while "filtered" not in pool.filters.states or len(set(pool.filters.states)) > 1:
        record, _ = decide(learner)
        learner.note_outcome(record, outcome(record, "error", http_status=500))
    refused = 0
    for i in range(100):  # but for the probes, without which no model could come back
        with contextlib.suppress(NothingFeasible):
            learner.decide("auto", Prompt(), float(i))
            refused -= 1
        refused += 1
    assert refused >= 75


async def test_the_reward_in_the_log_is_the_scorers_where_all_it_needs_is_known(make_learner, held_store):
    """Weights 1 : 1 of quality and cost: (0.5 + (1 − 0.0001/0.001)) / 2 = 0.7."""
    learner = make_learner()
    record, _ = decide(learner)
    learner.record_feedback(record, feedback(record, 0.5))
    learner.note_outcome(record, outcome(record))
    learner.record_feedback(record, feedback(record, 0.5, revision=1, revises=0.5))
    assert b'"reward":null' in held_store.waiting[1].payload
    assert b'"reward":0.7}' in held_store.waiting[3].payload.replace(b"0.7000000000000001", b"0.7")


async def test_propensities_in_the_log_are_those_drawn_from(make_learner):
    learner = make_learner()
    for _ in range(20):
        decision = decide(learner)[0].decision
        chosen = decision.arms.index(decision.chosen)
        assert decision.propensity == decision.probabilities[chosen]
        np.testing.assert_allclose(decision.probabilities.sum(), 1.0, rtol=1e-12)


async def test_a_requests_own_limits_are_told_from_the_pools(make_learner):
    """`a` costs e^5 = 148 tokens at 10 USD a million before it is known, `b` nobody knows what."""
    learner = make_learner()
    limits = RequestLimits(max_cost_usd=1e-4)
    decision = learner.decide("auto", Prompt(), 1.0, limits)
    assert (decision.chosen, decision.infeasible) == ("a", True)
    object.__setattr__(learner.pools["auto"].constraints, "on_infeasible", "fail")
    with pytest.raises(LimitsNotMet) as caught:
        learner.decide("auto", Prompt(), 1.0, limits)
    assert caught.value.excess == {"a": pytest.approx(1e-5 * (np.exp(5) - 1) / 1e-4 - 1, rel=0.02), "b": None}
    assert learner.decide("auto", Prompt(), 1.0, RequestLimits(max_cost_usd=0.1)).chosen == "a"


async def test_a_vector_that_does_not_fit_is_the_callers_fault(make_learner, held_store):
    with pytest.raises(InvalidRequest, match="takes no vector") as caught:
        make_learner().decide("auto", Prompt(vector=(1.0,)), 1.0)
    assert (caught.value.param, caught.value.code) == ("context", "invalid_context")
    assert held_store.position == 0


NEW = {"name": "new", "endpoint": "http://127.0.0.1:9/v1"}


def change(kind, name="new", **more):
    return [model_event(kind, pool, name, **more) for pool in ((None, "auto") if kind == ADDED else ("auto", None))]


@pytest.mark.parametrize("snapshot_every", [1, 10**9])
async def test_a_restart_finds_the_models_that_came_and_went(make_learner, held_store, snapshot_every):
    """At the same place in the log, from its beginning or from a snapshot."""
    learner = make_learner(snapshot_every_events=snapshot_every)
    drive(learner, 20)
    durable = learner.record(change(ADDED, definition=NEW, accuracy=1.0, samples=40))
    assert (learner.pools["auto"].names, durable.done()) == (("a", "b", "new"), False)
    drive(learner, 60)
    learner.record([model_event(REMOVED, "auto", "b")])
    drive(learner, 20)
    held_store.commit()
    assert durable.done()
    restarted = make_learner()
    restarted.recover()
    assert restarted.pools["auto"].names == learner.pools["auto"].names == ("a", "new")
    assert restarted.roster.state() == learner.roster.state()
    assert learned(restarted) == learned(learner)
    assert learner.pools["auto"].heads.weight[QUALITY, 1] > 20


async def test_a_snapshot_is_never_taken_amid_events_that_were_logged_together(make_learner, held_store):
    """It would be said to hold those that are still to come, and a restart would go without them."""
    learner = make_learner(snapshot_every_events=1)
    drive(learner, 3)
    learner.record(change(ADDED, definition=NEW, accuracy=1.0, samples=40))
    held_store.commit()
    restarted = make_learner()
    assert restarted.recover() == 0
    assert restarted.pools["auto"].names == learner.pools["auto"].names == ("a", "b", "new")
    assert restarted.roster.state() == learner.roster.state()


async def test_what_an_event_calls_for_and_a_full_store_does_not_take_is_logged_later(make_learner, held_store, caplog):
    """The event itself is taken: nobody is told that it was not. Who leads tries again."""
    learner = make_learner()
    taken = held_store.append_nowait

    def full_behind_each(new, placed=None):
        def then():
            held_store.full = True
            placed()

        taken(new, then)
        held_store.full = False

    held_store.append_nowait = full_behind_each
    for i in range(400):
        record, _ = decide(learner)
        learner.note_outcome(record, outcome(record))
        learner.record_feedback(record, feedback(record, 1.0 if i < 300 else 0.0))
    held_store.append_nowait = taken
    assert "not logged: " in caplog.text
    learner.lead(True)
    held_store.commit()
    resets = [e for e in held_store.committed if e.kind == "filter_event" and b'"reason":"drift"' in e.payload]
    assert resets
    restarted = make_learner()
    restarted.recover()
    assert learned(restarted) == learned(learner)


async def test_a_change_that_cannot_be_recorded_is_not_made(make_learner, held_store):
    learner = make_learner()
    held_store.full = True
    with pytest.raises(StoreFull):
        learner.record(change(ADDED, definition=NEW))
    assert (learner.pools["auto"].names, learner.roster.names, held_store.position) == (("a", "b"), [], 0)


async def test_what_comes_late_for_a_model_that_left_is_logged_and_teaches_nobody(make_learner, held_store):
    learner = make_learner()
    record, _ = decide(learner)
    while record.decision.chosen != "b":
        record, _ = decide(learner)
    learner.record([model_event(REMOVED, "auto", "b")])
    before = learned(learner)
    learner.note_outcome(record, outcome(record))
    learner.record_feedback(record, feedback(record, 1.0))
    assert learned(learner) == before


async def test_metrics_show_the_models_there_are(make_learner):
    learner = make_learner()
    learner.record(change(ADDED, definition=NEW))
    learner.record([model_event(REMOVED, "auto", "a")])
    (states,) = [metric for metric in learner._metrics.state.collect() if metric.name == "pointsman_filter_state"]
    shown = {sample.labels["model"] for sample in states.samples}
    assert shown == {"b", "new"}
