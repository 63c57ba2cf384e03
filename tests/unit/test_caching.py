"""The cache in a call's way: whose answers are given, which are kept, and how long another's is waited for."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace

import orjson
import pytest
from steered_pools import Steered

from bandit.types import Outcome
from serving.admission import Principal
from serving.errors import DeadlineExceeded, NotCached, UnknownModel
from serving.metrics import Metrics
from serving.records import Caller
from serving.request_headers import Hints
from serving.routing import Answer
from serving.settings import Settings
from serving.traffic.caching import Caching
from serving.wire import parse_call

ADA = Principal(user="ada", team="search")


class Way:
    """`serving.traffic.caching.Way` that answers `text` by the model the pool chooses, after a turn of the loop."""

    def __init__(self, service):
        self.service, self.text, self.infeasible, self.pause_s = service, "hi", False, 0.0
        self.end, self.calls = "stop", 0

    def deadline_s(self, _pool):
        return 5.0

    async def complete(self, call, caller):
        self.calls += 1
        decision, labels = self.service.steering.decide(call, caller, time.time())
        decision = replace(decision, infeasible=self.infeasible)
        record, _ = self.service.learner.record_decision(decision, labels)
        await asyncio.sleep(self.pause_s)
        outcome = Outcome(decision.decision_id, decision.ts, decision.chosen, "ok", 0.1, None, 3, 2, 0.25)
        self.service.learner.note_outcome(record, outcome)
        choice = {"index": 0, "message": {"role": "assistant", "content": self.text}, "finish_reason": self.end}
        body = {"id": decision.decision_id, "model": decision.chosen, "choices": [choice]}
        return Answer(decision, outcome, orjson.dumps(body), 0.1, labels, 1)


@pytest.fixture
async def room(held_store):
    """Makes (the service, the way behind the cache, the cache, what asks it), on a store that is quick."""

    async def commits():
        while True:
            held_store.commit()
            await asyncio.sleep(0)

    def room(cache=None, **more):
        service = Steered(held_store, weights={"a": 1}, cache=cache or {}, **more)
        way, now = Way(service), [100.0]
        caching = Caching(
            way,
            service.learner,
            service.traffic,
            {"auto": service.settings.pools[0].cache},
            labels=service.steering.labels,
            metrics=Metrics(),
            secret=b"s" * 32,
            clock=lambda: now[0],
        )

        async def ask(**hints):
            body = {"model": "auto", "messages": [{"role": "user", "content": "x"}], "temperature": 0}
            return await caching.complete(parse_call("chat/completions", body, Hints(**hints), 10), Caller(ADA))

        return service, way, caching, ask, now

    task = asyncio.create_task(commits())
    yield room
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def modes(ask, count=2, **hints):
    return [(await ask(**hints)).decision.mode for _ in range(count)]


async def test_an_answer_is_given_until_its_time_is_over(room):
    *_, ask, now = room({"ttl_s": 60})
    assert await modes(ask) == ["weighted", "cached"]
    now[0] += 59
    assert (await modes(ask, 1), await modes(ask, 1, cache_control="max-age=58")) == (["cached"], ["weighted"])
    now[0] += 60  # that took the place of the first
    assert await modes(ask) == ["weighted", "cached"]


async def test_a_filtered_models_answers_are_not_given(room):
    service, *_, ask, _ = room(constraints={"max_error_rate": 0.05})
    assert await modes(ask) == ["weighted", "cached"]
    for _ in range(200):
        service.decide()
        service.outcome("a", status="error", latency_s=None, output_tokens=None, input_tokens=None, cost_usd=None)
        if service.pool.filters.states[0] == "filtered":
            break
    assert service.pool.filters.states[0] == "filtered"
    assert (await ask()).decision.mode != "cached"


async def test_another_set_of_models_leaves_behind_what_was_kept(room):
    service, *_, ask, _ = room()
    assert await modes(ask) == ["weighted", "cached"]
    service.change("disabled", ["c"])
    assert await modes(ask) == ["weighted", "cached"]
    service.change("disabled", [])
    assert await modes(ask, 1) == ["cached"]  # as it was
    elsewhere = {"models": [{"name": n, "endpoint": "http://127.0.0.1:2/v1"} for n in "abc"]}
    elsewhere |= {"pools": [{"name": "auto", "models": ["a"]}]}
    moved = {model.name: model for model in Settings.parse(elsewhere).models}
    service.learner.roster.model = moved.get
    assert await modes(ask) == ["weighted", "cached"]


@pytest.mark.parametrize(
    ("cache", "change"),
    [({}, {"infeasible": True}), ({"max_answer_bytes": 256}, {"text": "x" * 300}), ({}, {"end": "length"})],
)
async def test_what_missed_a_limit_is_too_large_or_was_cut_is_not_kept(room, cache, change):
    _, way, _, ask, _ = room(cache)
    for name, value in change.items():
        setattr(way, name, value)
    assert await modes(ask, 3) == ["weighted"] * 3


async def test_waiting_is_bounded_by_the_setting_and_by_the_calls_own_time(room):
    _, way, _, ask, _ = room({"max_wait_s": 0.05})
    way.pause_s = 0.3
    answers = await asyncio.gather(*(ask() for _ in range(3)))
    assert [answer.decision.mode for answer in answers] == ["weighted"] * 3
    _, way, _, ask, _ = room()
    way.pause_s = 0.3
    first = asyncio.create_task(ask())
    await asyncio.sleep(0)
    with pytest.raises(DeadlineExceeded):
        await ask(timeout_s=0.05)
    assert ((await first).decision.mode, way.calls) == ("weighted", 1)


async def test_without_coalescing_each_asks_itself(room):
    _, way, _, ask, _ = room({"coalesce": False})
    await asyncio.gather(ask(), ask())
    assert (way.calls, await modes(ask, 1)) == (2, ["cached"])


async def test_what_is_under_way_when_all_is_dropped_is_not_kept(room):
    _, way, caching, ask, _ = room()
    first = asyncio.create_task(ask())
    await asyncio.sleep(0)
    assert caching.purge("auto") == 0
    assert await modes(ask, 1) == ["weighted"]  # nor waited for
    await first
    assert (way.calls, caching.purge("auto")) == (2, 1)
    with pytest.raises(NotCached):
        await ask(cache_control="only-if-cached")
    with pytest.raises(UnknownModel):
        caching.purge("none")


async def test_feedback_on_a_hit_teaches_nothing(room):
    service, *_, ask, _ = room()
    await ask()
    hit = await ask()
    before = orjson.dumps(service.pool.state(), option=orjson.OPT_SERIALIZE_NUMPY, default=str)
    service.record = service.learner.find(hit.decision.decision_id)
    service.feedback(0.0)
    assert orjson.dumps(service.pool.state(), option=orjson.OPT_SERIALIZE_NUMPY, default=str) == before
