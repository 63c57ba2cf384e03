"""The feedback desk on a slow disk: nothing is acknowledged before it is durable, whoever asks how often."""

from __future__ import annotations

import asyncio

import pytest

from bandit import Outcome, Prompt
from serving.errors import Conflict, ExpiredDecision, InvalidFields, UnknownDecision
from serving.feedback import FeedbackDesk, OutcomeItem, RewardItem, parse_outcome, parse_rewards
from serving.records import Labels
from serving.store import StoreFailed

HORIZON_S = 60.0
NOW = 1_000.0


@pytest.fixture
def learner(make_learner):
    return make_learner()


@pytest.fixture
def desk(learner):
    return FeedbackDesk(learner, {"auto": {"correct": 3.0, "helpful": 1.0}}, HORIZON_S)


@pytest.fixture
async def record(learner, held_store):
    """A durable decision made at NOW."""
    decision = learner.decide("auto", Prompt(text="which?"), NOW)
    record, _ = learner.record_decision(decision, Labels())
    return record


def reward(record, **fields):
    return RewardItem(decision_id=record.decision.decision_id, **fields)


def outcome(record, **fields):
    return OutcomeItem(decision_id=record.decision.decision_id, **fields)


async def settled(*tasks):
    """Whether each task is done, once all had their turn."""
    for _ in range(5):
        await asyncio.sleep(0)
    return [task.done() for task in tasks]


async def test_feedback_and_its_duplicates_are_acknowledged_when_it_is_durable(desk, record, held_store):
    tasks = [asyncio.create_task(desk.accept(reward(record, quality=0.5), NOW)) for _ in range(3)]
    assert await settled(*tasks) == [False] * 3
    held_store.commit()
    assert await asyncio.gather(*tasks) == ["recorded", "duplicate", "duplicate"]
    assert await desk.accept(reward(record, quality=0.5), NOW) == "duplicate"  # at once: it is durable


async def test_outcomes_and_their_duplicates_are_acknowledged_when_they_are_durable(desk, record, held_store):
    tasks = [asyncio.create_task(desk.accept_outcome(outcome(record, latency_s=0.5), NOW)) for _ in range(3)]
    assert await settled(*tasks) == [False] * 3
    held_store.commit()
    assert await asyncio.gather(*tasks) == ["recorded", "duplicate", "duplicate"]
    assert [event.kind for event in held_store.committed] == ["decision", "outcome"]


async def test_who_goes_away_takes_nobody_along(desk, record, held_store):
    """The first caller's connection breaks while a duplicate of its feedback waits for the same write."""
    first, second = (asyncio.create_task(desk.accept(reward(record, quality=0.5), NOW)) for _ in range(2))
    batch = asyncio.create_task(desk.accept_batch([reward(record, quality=0.5)], NOW))
    await settled(first, second, batch)
    first.cancel()
    batch.cancel()
    assert await settled(first, second, batch) == [True, False, True]
    third = asyncio.create_task(desk.accept(reward(record, quality=0.5), NOW))
    assert await settled(third) == [False]
    held_store.commit()
    assert [await second, await third] == ["duplicate", "duplicate"]


async def test_a_duplicate_waits_for_the_latest_write(desk, record, held_store):
    held_store.commit()
    first = asyncio.create_task(desk.accept(reward(record, quality=0.5), NOW))
    revised = asyncio.create_task(desk.accept(reward(record, quality=1.0, revise=True), NOW))
    await settled(first, revised)
    held_store.commit(1)  # its end must not hide that the other is still on its way
    await settled(first, revised)
    duplicate = asyncio.create_task(desk.accept(reward(record, quality=1.0), NOW))
    assert await settled(first, revised, duplicate) == [True, False, False]
    held_store.commit()
    assert [await first, await revised, await duplicate] == ["recorded", "revised", "duplicate"]


async def test_everybody_who_waits_is_told_that_the_disk_broke(desk, record, held_store):
    tasks = [asyncio.create_task(desk.accept(reward(record, quality=0.5), NOW)) for _ in range(2)]
    tasks.append(asyncio.create_task(desk.accept_batch([reward(record, quality=0.5)], NOW)))
    await settled(*tasks)
    held_store.fail()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [StoreFailed] * 3


async def test_a_call_under_way_has_no_outcome_but_its_own(desk, learner, record):
    record.in_flight = True
    with pytest.raises(Conflict, match="itself"):
        await desk.accept_outcome(outcome(record, latency_s=0.5), NOW)
    assert record.outcome is None


async def test_the_horizon_is_counted_from_the_decision(desk, record, held_store):
    held_store.commit()
    item = reward(record, quality=0.5)
    with pytest.raises(ExpiredDecision):
        await desk.accept(item, NOW + HORIZON_S + 0.01)
    task = asyncio.create_task(desk.accept(item, NOW + HORIZON_S))
    await settled(task)
    held_store.commit()
    assert await task == "recorded"


async def test_unknown_decisions(desk):
    for decision_id in ("x", f"pm-{int(NOW * 1000):012x}{'0' * 20}"):
        with pytest.raises(UnknownDecision):
            await desk.accept(RewardItem(decision_id=decision_id, quality=1.0), NOW)


# known quality and metrics; posted quality and metrics, revise; what is said, the quality then, what it revises
MERGES = [
    (None, {}, 0.5, {}, False, "recorded", 0.5, None),
    (None, {}, None, {"correct": 1.0}, False, "recorded", None, None),
    (None, {}, None, {"correct": 1.0, "helpful": 0.0}, False, "recorded", 0.75, None),
    (None, {}, 0.25, {"correct": 1.0, "helpful": 0.0}, False, "recorded", 0.25, None),
    (None, {"correct": 1.0}, None, {"helpful": 1.0}, False, "recorded", 1.0, None),
    (None, {"correct": 1.0}, None, {"correct": 1.0}, False, "duplicate", None, None),
    (None, {"correct": 1.0}, None, {"correct": 0.0}, False, "conflict", None, None),
    (None, {"correct": 1.0}, None, {"correct": 0.0, "helpful": 0.0}, True, "revised", 0.0, None),
    (0.5, {}, 0.5, {}, False, "duplicate", 0.5, None),
    (0.5, {}, 0.5, {}, True, "duplicate", 0.5, None),
    (0.5, {}, 0.25, {}, False, "conflict", 0.5, None),
    (0.5, {}, 0.25, {}, True, "revised", 0.25, 0.5),
    (0.5, {}, 0.25, {"stars": 5.0}, False, "conflict", 0.5, None),
    (0.5, {}, None, {"stars": 5.0}, False, "recorded", 0.5, 0.5),
    (0.5, {}, None, {"correct": 1.0, "helpful": 1.0}, False, "recorded", 0.5, 0.5),
    (0.75, {"correct": 1.0, "helpful": 0.0}, None, {"helpful": 1.0}, True, "revised", 1.0, 0.75),
    (0.75, {"correct": 1.0, "helpful": 0.0}, 0.25, {}, True, "revised", 0.25, 0.75),
]


@pytest.mark.parametrize(("quality", "metrics", "posted", "more", "revise", "said", "then", "revises"), MERGES)
async def test_what_new_feedback_is_to_what_was_known(  # noqa: PLR0917 - a row's columns
    desk, record, held_store, quality, metrics, posted, more, revise, said, then, revises
):
    async def post(item):
        task = asyncio.create_task(desk.accept(item, NOW))
        await settled(task)
        held_store.commit()
        return await task

    if quality is not None or metrics:
        assert await post(reward(record, quality=quality, metrics=metrics)) == "recorded"
    known = record.feedback
    item = reward(record, quality=posted, metrics=more, revise=revise)
    if said == "conflict":
        with pytest.raises(Conflict):
            await post(item)
        assert record.feedback is known
        return
    assert await post(item) == said
    assert record.feedback.quality == then
    if said != "duplicate":
        assert record.feedback.revises == revises
        assert record.feedback.metrics == metrics | more
        assert record.feedback.revision == (0 if known is None else 1)


async def test_feedback_on_a_served_answer_is_the_serving_models(desk, learner, record, held_store):
    """After a fallback, the model that answered is the one that is graded."""
    other = next(name for name in ("a", "b") if name != record.decision.chosen)
    learner.note_outcome(record, Outcome(record.decision.decision_id, NOW, other, "ok", 0.5, attempt=1))
    task = asyncio.create_task(desk.accept(reward(record, quality=1.0), NOW))
    await settled(task)
    held_store.commit()
    await task
    pool = learner.pools["auto"]
    assert pool.heads.weight[0][pool.names.index(other)] == 1.0


def test_a_body_is_one_item_or_a_list():
    item = {"decision_id": "pm-1", "quality": 1}
    assert parse_rewards(item).quality == 1.0
    assert [i.decision_id for i in parse_rewards([item] * 1000)] == ["pm-1"] * 1000
    assert parse_outcome({"decision_id": "pm-1"}).status == "ok"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ([], ""),
        ([{}] * 1001, ""),
        ({}, "decision_id"),
        (7, ""),
        ([[]], "[0]"),
        ({"decision_id": "x", "metrics": {"": 1}}, "metrics."),
    ],
)
def test_problems_say_where(body, param):
    with pytest.raises(InvalidFields) as refused:
        parse_rewards(body)
    assert refused.value.problems[0]["param"] == param
    assert len(refused.value.problems) <= 100


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.001, 1.001, True, "1", None])
def test_a_quality_is_a_number_from_0_to_1(value):
    with pytest.raises(InvalidFields):
        parse_rewards({"decision_id": "pm-1", "quality": value})
    with pytest.raises(InvalidFields):
        parse_rewards([{"decision_id": "pm-1", "quality": value}])


@pytest.mark.parametrize(
    ("correct", "helpful", "quality"),
    [(1e308, 1e308, 1.0), (-1e308, -1e308, 0.0), (1e308, -1e308, 1.0), (1.7e308, 0.0, 1.0), (0.5, 0.1, 0.4)],
)
async def test_metrics_may_be_as_large_as_numbers_are(desk, record, learner, held_store, correct, helpful, quality):  # noqa: PLR0917 - a row's columns
    """Their weighted mean is held between 0 and 1, and no sum on the way there overflows."""
    task = asyncio.create_task(desk.accept(reward(record, metrics={"correct": correct, "helpful": helpful}), NOW))
    await settled(task)
    held_store.commit()
    assert await task == "recorded"
    assert learner.find(record.decision.decision_id).feedback.quality == pytest.approx(quality)
