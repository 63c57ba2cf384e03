"""Several learners over one store on a real server: one posterior, whoever recorded what."""

from __future__ import annotations

import asyncio
import random

import numpy as np
import orjson
import pytest

from bandit import Arm, Constraints, Feedback, Objective, Outcome, Pool, Price, Prompt
from bandit.snapshot import dumps
from bandit.types import Decision
from serving.errors import Conflict, Unavailable
from serving.feedback import FeedbackDesk, OutcomeItem, RewardItem
from serving.learner import Learner
from serving.metrics import Metrics
from serving.records import Labels
from serving.valkey_store import ValkeyStore

HORIZON_S = 86_400.0


def pool():
    return Pool(
        [Arm("a", Price(1.0, 10.0)), Arm("b"), Arm("c")],
        name="auto",
        objective=Objective(quality=1.0, cost=1.0, cost_reference_usd=0.001),
        constraints=Constraints(max_error_rate=0.2, min_accuracy=0.3, accuracy_evidence="feedback"),
        half_life_requests=100.0,
    )


class Replica:
    """One process's learner and desk; `start` takes part from what the store holds."""

    def __init__(self, server, name, seed, **more):
        self.store = ValkeyStore(server.url, name=name, commit_interval_s=0.0)
        settings = {"cache_decisions": 1_000, "snapshot_every_events": 10**9} | more
        self.learner = Learner(
            {"auto": pool()}, {"auto": np.random.default_rng(seed)}, self.store, Metrics(), **settings
        )
        self.learner.leads = seed == 0
        self.desk = FeedbackDesk(self.learner, {}, HORIZON_S)
        self.learner.recover()
        self.following = asyncio.create_task(self.learner.follow(self.store))

    async def close(self):
        await self.store.close()
        await asyncio.gather(self.following, return_exceptions=True)

    async def call(self, ts, quality, *, broken=False):
        """A call from decision to outcome; its id."""
        decision = self.learner.decide("auto", Prompt(text=f"which, at {ts}?"), ts)
        record, durable = self.learner.record_decision(decision, Labels())
        await durable
        status = "error" if broken else "ok"
        values = {"latency_s": 0.2 + quality, "output_tokens": 10, "input_tokens": 10, "cost_usd": 0.0001}
        self.learner.note_outcome(record, Outcome(decision.decision_id, ts + 1, decision.chosen, status, **values))
        return decision.decision_id

    def learned(self):
        state = self.learner.pools["auto"].state()
        return dumps(state)


@pytest.fixture
async def replicas(valkey_server, request):
    """Makes replicas over one store, another for each test; closed at the end."""
    made = []

    def replica(seed=0, **more):
        made.append(Replica(valkey_server, request.node.name.replace("[", "-").replace("]", ""), seed, **more))
        return made[-1]

    yield replica
    for one in made:
        await one.close()


async def settled(*replicas):
    """Until all have all that was appended."""
    async with asyncio.timeout(30):
        for one in replicas:
            await one.store.flush()
        while len({at for one in replicas for at in (one.store.placed_position, one.store.position)}) > 1:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0.005)


async def test_replicas_that_share_calls_and_feedback_have_one_posterior(replicas):
    """Also one that joins late, and one process that only reads the log: bit for bit."""
    first, second = replicas(0), replicas(1)
    chance = random.Random(7)

    async def caller(number):
        for i in range(40):
            at, other = chance.sample([first, second], 2)
            made = await at.call(1e9 + i, chance.random(), broken=chance.random() < 0.1)
            if i % 4:
                await chance.choice([at, other]).desk.accept(
                    RewardItem(decision_id=made, quality=chance.random()), 1e9 + i + 2
                )

    await asyncio.gather(*(caller(number) for number in range(6)))
    await settled(first, second)
    third = replicas(2)
    assert first.learned() == second.learned() == third.learned()
    assert first.learner.pools["auto"].step == 240


async def test_a_reset_on_drift_is_made_by_one_and_by_all_at_the_same_place(replicas):
    first, second = replicas(0), replicas(1)
    for i in range(500):
        at = (first, second)[i % 2]
        made = await at.call(1e9 + i, 0.0)
        await at.desk.accept(RewardItem(decision_id=made, quality=1.0 if i < 350 else 0.0), 1e9 + i)
    await settled(first, second)
    events = first.store.read(0, 10_000)
    resets = [event for event in events if event.kind == "filter_event" and b'"reason":"drift"' in event.payload]
    assert resets
    assert first.learned() == second.learned() == replicas(2).learned()


async def test_feedback_sent_to_two_at_once_is_recorded_once(replicas):
    """The same twice: one records it, the other calls it a duplicate; another value is a conflict, or revises."""
    first, second = replicas(0), replicas(1)
    for i in range(20):
        made = await first.call(1e9 + i, 0.0)
        item = RewardItem(decision_id=made, quality=0.5)
        both = await asyncio.gather(*(one.desk.accept(item, 1e9 + i) for one in (first, second)))
        assert sorted(both) == ["duplicate", "recorded"]
        other = RewardItem(decision_id=made, quality=0.75)
        with pytest.raises(Conflict):
            await second.desk.accept(other, 1e9 + i)
        revised = [one.desk.accept(other.model_copy(update={"revise": True}), 1e9 + i) for one in (first, second)]
        assert sorted(await asyncio.gather(*revised)) == ["duplicate", "revised"]
    await settled(first, second)
    kinds = [event.kind for event in first.store.read(0, 10_000)]
    assert kinds.count("feedback") == 40
    assert first.learned() == second.learned()


async def test_feedback_that_can_never_be_first_is_refused_in_the_end(replicas, valkey_server):
    """Such as where the log lost events that memory has: the next is always another than the one that is due."""
    first = replicas(0)
    made = await first.call(1e9, 0.0)
    await first.desk.accept(RewardItem(decision_id=made, quality=0.5), 1e9)
    client = valkey_server.client()
    client.delete(f"{{{first.store.name}}}:of:{made}")
    client.close()
    with pytest.raises(Unavailable):
        await first.desk.accept(RewardItem(decision_id=made, quality=0.75, revise=True), 1e9)
    [refused] = await first.desk.accept_batch([RewardItem(decision_id=made, quality=0.75, revise=True)], 1e9)
    assert isinstance(refused, Unavailable)


async def test_a_list_of_feedback_sent_to_two_at_once_is_recorded_once(replicas):
    first, second = replicas(0), replicas(1)
    made = [await first.call(1e9 + i, 0.0) for i in range(30)]
    items = [RewardItem(decision_id=name, quality=1.0) for name in made]
    one, two = await asyncio.gather(*(at.desk.accept_batch(items, 1e9) for at in (first, second)))
    assert all(sorted(pair) == ["duplicate", "recorded"] for pair in zip(one, two, strict=True))


async def test_an_outcome_sent_to_two_at_once_is_recorded_once(replicas):
    first, second = replicas(0), replicas(1)
    for i in range(10):
        decision = first.learner.decide("auto", Prompt(text="which?"), 1e9 + i)
        await first.learner.record_decision(decision, Labels(outside=True))[1]
        items = [OutcomeItem(decision_id=decision.decision_id, latency_s=latency) for latency in (0.1, 0.2)]
        desks = [one.desk.accept_outcome(item, 1e9 + i) for one, item in zip((first, second), items, strict=True)]
        results = await asyncio.gather(*desks, return_exceptions=True)
        assert sorted(map(str, results))[1] == "recorded", results
        assert sum(isinstance(result, Conflict) for result in results) == 1
    await settled(first, second)
    assert [event.kind for event in first.store.read(0, 1_000)].count("outcome") == 10
    assert first.learned() == second.learned()


async def test_an_outcome_of_a_call_that_another_process_makes_is_refused_until_there_is_one(replicas):
    first, second = replicas(0), replicas(1)
    decision = first.learner.decide("auto", Prompt(text="which?"), 1e9)
    record, durable = first.learner.record_decision(decision, Labels())
    await durable
    await settled(first, second)
    item = OutcomeItem(decision_id=decision.decision_id, latency_s=0.1)
    with pytest.raises(Conflict, match="makes this call itself"):
        await second.desk.accept_outcome(item, 1e9)
    first.learner.note_outcome(record, Outcome(decision.decision_id, 1e9, decision.chosen, "ok", latency_s=0.2))
    await settled(first, second)
    with pytest.raises(Conflict, match="was recorded"):
        await second.desk.accept_outcome(item, 1e9)


async def test_only_who_leads_takes_snapshots_and_any_start_finds_them(replicas):
    first, second = replicas(0, snapshot_every_events=50), replicas(1, snapshot_every_events=50)
    for i in range(60):
        await (first, second)[i % 2].call(1e9 + i, 0.3)
    await settled(first, second)
    assert first.learner.snapshot_position > 0
    assert second.learner.snapshot_position == 0
    third = replicas(2)
    assert third.learner.snapshot_position == first.learner.snapshot_position
    assert third.learned() == first.learned()


async def test_a_replica_that_forgot_a_decision_finds_it_in_the_store(replicas):
    """The cache holds 1,000 decisions; feedback for older ones comes to whichever process."""
    first, second = replicas(0, cache_decisions=1), replicas(1, cache_decisions=1)
    made = [await first.call(1e9 + i, 0.0) for i in range(20)]
    for name in made:
        assert await second.desk.accept(RewardItem(decision_id=name, quality=0.9), 1e9) == "recorded"
    await settled(first, second)
    assert first.learned() == second.learned()


async def test_what_one_process_learns_from_the_same_events_is_the_same(replicas, make_learner, held_store):
    """One process of the plain kind, given the decisions, outcomes and feedback in the order of the shared log."""
    first, second = replicas(0), replicas(1)
    for i in range(120):
        at = (first, second)[i % 2]
        made = await at.call(1e9 + i, (i % 7) / 7, broken=i % 11 == 0)
        await (second, first)[i % 2].desk.accept(RewardItem(decision_id=made, quality=(i % 5) / 4), 1e9 + i)
    await settled(first, second)
    alone = Learner(
        {"auto": pool()},
        {"auto": np.random.default_rng(0)},
        held_store,
        Metrics(),
        cache_decisions=1_000,
        snapshot_every_events=10**9,
    )
    for event in first.store.read(0, 10_000):
        if event.kind == "decision":
            alone.record_decision(Decision.from_row(orjson.loads(event.payload)), Labels())
        elif event.kind == "outcome":
            record = alone.find(event.decision_id)
            alone.note_outcome(record, Outcome(**orjson.loads(event.payload)))
        elif event.kind == "feedback":
            row = orjson.loads(event.payload)
            row.pop("reward")
            alone.record_feedback(alone.find(event.decision_id), Feedback(**row))
    assert dumps(alone.pools["auto"].state()) == first.learned() == second.learned()


async def test_who_leads_next_logs_what_was_called_for_while_nobody_led(replicas):
    """A change of standing and a reset on drift: logged once, by one that saw them or that has just started."""
    first, second = replicas(0), replicas(1)
    first.learner.lead(False)
    for i in range(500):
        made = await second.call(1e9 + i, 0.0, broken=i % 2 == 0)
        await second.desk.accept(RewardItem(decision_id=made, quality=1.0 if i < 350 else 0.0), 1e9 + i)
    await settled(first, second)
    assert [event for event in first.store.read(0, 10_000) if event.kind == "filter_event"] == []
    third = replicas(2)
    first.learner.lead(True)
    await settled(first, second, third)
    logged = [orjson.loads(event.payload) for event in first.store.read(0, 10_000) if event.kind == "filter_event"]
    assert {row["reason"] for row in logged} >= {"drift", "proved violating"}
    for late in (second, third):
        late.learner.lead(True)
    await settled(first, second, third)
    assert len([event for event in first.store.read(0, 10_000) if event.kind == "filter_event"]) == len(logged)
    assert first.learned() == second.learned() == third.learned() == replicas(3).learned()
