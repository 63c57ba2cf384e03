"""Feedback that never comes: what is assumed, when, once, and what becomes of it when real feedback comes after all."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from bandit import Outcome, Prompt
from bandit.posterior import QUALITY
from serving.errors import InvalidFields
from serving.feedback import FeedbackDesk, RewardItem, parse_rewards
from serving.imputation import MissingFeedback, is_imputed
from serving.records import Labels, Record, record_from

HORIZON_S, WAIT_S, NOW = 1_000.0, 10.0, 5_000.0


@pytest.fixture
def service(make_learner, held_store):
    return Service(make_learner(), held_store)


class Service:
    """A learner, a desk and the housekeeper on a store in memory; a new one on the same store is a restart."""

    def __init__(self, learner, store, quality=0.25):
        self.learner, self.store = learner, store
        self.desk = FeedbackDesk(learner, {"auto": {"correct": 1.0}}, HORIZON_S)
        self.missing = MissingFeedback({"auto": (quality, WAIT_S)}, self.desk, learner, store, HORIZON_S)

    def call(self, ts=NOW, status="ok", **more):
        decision = self.learner.decide("auto", Prompt(text="which?"), ts)
        record, _ = self.learner.record_decision(decision, Labels())
        if status is not None:
            self.learner.note_outcome(record, Outcome(decision.decision_id, ts, decision.chosen, status, 0.5, **more))
        self.store.commit()
        return record

    async def run(self, now):
        task = asyncio.create_task(self.missing.run(now))
        while not task.done():
            self.store.commit()
            await asyncio.sleep(0.001)
        return task.result()

    async def post(self, record, now=NOW + 20, **fields):
        task = asyncio.create_task(self.desk.accept(RewardItem(decision_id=record.decision.decision_id, **fields), now))
        for _ in range(5):
            await asyncio.sleep(0)
        self.store.commit()
        return await task

    def feedback(self):
        return [event for event in self.store.committed if event.kind == "feedback"]

    @property
    def heads(self):
        return self.learner.pools["auto"].heads


def assert_same_quality(one, two):
    for name in ("gram", "moment", "square", "weight"):
        np.testing.assert_allclose(getattr(one, name)[QUALITY], getattr(two, name)[QUALITY], rtol=1e-12, atol=1e-12)


async def test_a_quality_is_assumed_once_its_time_has_come(service):
    record = service.call()
    assert await service.run(NOW + WAIT_S - 0.01) == 0
    assert await service.run(NOW + WAIT_S) == 1
    assert (record.feedback.quality, is_imputed(record.feedback)) == (0.25, True)
    assert service.heads.weight[QUALITY].sum() == 1.0
    assert await service.run(NOW + WAIT_S) == 0
    assert await service.run(NOW + 100) == 0
    (event,) = service.feedback()
    assert record_from([*service.store.find(record.decision.decision_id)]).feedback == record.feedback
    assert b'"imputed":1.0' in event.payload


async def test_nothing_is_assumed_where_nothing_is_missing(service, make_learner):
    """Failed or abandoned calls, calls under way, other pools' calls, those that were graded or only measured."""
    for status in ("error", "timeout", "cancelled", None):
        service.call(status=status)
    graded, measured = service.call(), service.call()
    await service.post(graded, quality=1.0)
    await service.post(measured, metrics={"stars": 4.0})
    assert await service.run(NOW + 100) == 0
    other = MissingFeedback({"other": (0.5, WAIT_S)}, service.desk, service.learner, service.store, HORIZON_S)
    service.call()
    assert await other.run(NOW + 100) == 0
    assert len(service.feedback()) == 2


async def test_nothing_is_assumed_for_a_pinned_call(service):
    record = service.call()
    decision = record.decision
    service.learner._learned._recent.clear()
    pinned = type(decision).from_row({**_plain(decision), "mode": "pinned"})
    service.learner._learned.remember(Record(pinned, record.outcome))
    assert service.desk.assume(decision.decision_id, "auto", 0.5, WAIT_S, NOW + 100) is None


def _plain(decision):
    row = decision.to_row()
    return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in row.items()}


async def test_past_its_horizon_a_call_is_let_be(service):
    """Its decision may be pruned at any time, and a replay could not learn what it cannot find."""
    service.call()
    assert await service.run(NOW + HORIZON_S + 1) == 0
    assert service.feedback() == []


async def test_an_answer_after_a_fallback_waits_from_its_own_time(service):
    record = service.call(status="error")
    decision = record.decision
    again = Outcome(decision.decision_id, NOW + 5, decision.chosen, "ok", 0.5, attempt=1)
    service.learner.note_outcome(record, again)
    service.store.commit()
    assert await service.run(NOW + WAIT_S + 1) == 0
    assert await service.run(NOW + WAIT_S + 5) == 1


@pytest.mark.parametrize("quality", [1.0, 0.25])
async def test_real_feedback_replaces_what_was_assumed_as_if_it_had_come_first(make_learner, held_store, quality):
    """Whatever it says, even the same: no `revise` is needed, and it answers `recorded`; a second time, duplicate."""
    service, reference = Service(make_learner(), held_store), make_learner()
    record = service.call()
    await service.run(NOW + WAIT_S)
    assert await service.post(record, quality=quality) == "recorded"
    assert (record.feedback.quality, record.feedback.metrics, record.feedback.revises) == (quality, {}, 0.25)
    assert await service.post(record, quality=quality) == "duplicate"

    pool = reference.pools["auto"]
    pool.advance(record.decision)
    pool.apply_outcome(record.decision, record.outcome)
    pool.apply_feedback(record.decision, record_from(held_store.find(record.decision.decision_id)).feedback)
    first = make_learner().pools["auto"]
    first.advance(record.decision)
    first.apply_outcome(record.decision, record.outcome)
    first.apply_feedback(record.decision, type(record.feedback)(record.decision.decision_id, NOW, quality))
    assert_same_quality(service.heads, first.heads)
    evidence = [p.filters.state() for p in (service.learner.pools["auto"], first)]
    assert evidence[0] == evidence[1]  # the real one is evidence on the accuracy limit, the assumed one never was


async def test_metrics_that_make_a_quality_replace_it_and_others_leave_it_assumed(service):
    one, two = service.call(), service.call()
    await service.run(NOW + WAIT_S)
    assert await service.post(one, metrics={"correct": 1.0}) == "recorded"
    assert (one.feedback.quality, one.feedback.metrics) == (1.0, {"correct": 1.0})
    assert await service.post(two, metrics={"stars": 4.0}) == "recorded"
    assert (two.feedback.quality, is_imputed(two.feedback)) == (0.25, True)
    assert await service.post(two, metrics={"stars": 4.0}) == "duplicate"
    assert await service.post(two, quality=0.75) == "recorded"
    assert (two.feedback.quality, two.feedback.metrics) == (0.75, {"stars": 4.0})


async def test_what_is_assumed_is_no_evidence_against_a_model(service):
    """A thousand silent callers do not break an accuracy limit; only what somebody graded can."""
    before = service.learner.pools["auto"].filters.states[:]
    for i in range(300):
        service.call(NOW + i * 0.001)
    service.missing._policies["auto"] = (0.0, WAIT_S)
    assert await service.run(NOW + 100) == 300
    assert service.learner.pools["auto"].filters.states[:] == before
    assert service.heads.weight[QUALITY].sum() > 250
    assert service.learner._metrics.registry.get_sample_value("pointsman_quality_count") is None


@pytest.mark.parametrize("snapshot_after", ["nothing", "calls", "everything"])
@pytest.mark.parametrize("kept", [0, 1, 7, 30])
async def test_a_restart_assumes_nothing_twice_and_leaves_nothing_out(make_learner, held_store, snapshot_after, kept):
    """Of 30 qualities assumed, the first `kept` were durable when the process died."""
    service = Service(make_learner(), held_store)
    for i in range(30):
        service.call(NOW + i * 0.01)
    if snapshot_after == "calls":
        service.learner.snapshot()
    before = len(held_store.committed)
    assert await service.run(NOW + 100) == 30
    if snapshot_after == "everything" and kept == 30:
        service.learner.snapshot()
    del held_store.committed[before + kept :]

    restarted = Service(make_learner(), held_store)
    restarted.learner.recover()
    assert restarted.heads.weight[QUALITY].sum() == pytest.approx(
        service.heads.weight[QUALITY].sum() * kept / 30, rel=0.2
    )
    assert await restarted.run(NOW + 100) == 30 - kept
    assert len({event.decision_id for event in restarted.feedback()}) == len(restarted.feedback()) == 30
    assert_same_quality(restarted.heads, service.heads)

    again = Service(make_learner(), held_store)
    again.learner.recover()
    assert_same_quality(again.heads, service.heads)
    assert await again.run(NOW + 200) == 0


async def test_how_far_it_has_come_is_part_of_a_snapshot(make_learner, held_store):
    service = Service(make_learner(), held_store)
    for i in range(5):
        service.call(NOW + i)
    await service.run(NOW + WAIT_S + 2)
    service.learner.snapshot()
    restarted = make_learner()
    restarted.recover()
    (at,) = restarted.awaited.values()
    assert at == service.learner.awaited["auto"]
    assert at[0] == NOW + 2


async def test_a_full_store_is_tried_again_later(service):
    for i in range(3):
        service.call(NOW + i * 0.01)
    service.store.full = True
    assert await service.run(NOW + 100) == 0
    service.store.full = False
    assert await service.run(NOW + 100) == 3


async def test_a_backlog_is_worked_off_in_portions(service, monkeypatch):
    monkeypatch.setattr("serving.imputation._MOST_PER_RUN", 5)
    monkeypatch.setattr("serving.imputation._BATCH", 3)
    for i in range(14):
        service.call(NOW + i * 0.01)
    assert [await service.run(NOW + 100) for _ in range(4)] == [6, 6, 2, 0]


def test_callers_cannot_mark_their_own_feedback_as_assumed():
    with pytest.raises(InvalidFields, match="imputed"):
        parse_rewards({"decision_id": "pm-1", "metrics": {"imputed": 1}})
