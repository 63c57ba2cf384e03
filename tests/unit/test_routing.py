"""The way of one call, on a slow disk: nothing is released before its decision is durable, attempts have outcomes."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import asynccontextmanager

import numpy as np
import orjson
import pytest

from bandit.types import Arm
from serving.access.ledger import Ledger
from serving.admission import Principal
from serving.attempts import Means
from serving.breaker import Breaker
from serving.errors import (
    CallerGone,
    DeadlineExceeded,
    NothingAvailable,
    UnknownModel,
    UpstreamError,
    UpstreamRefused,
    UpstreamTimeout,
)
from serving.failure_settings import BreakerSettings, FailureSettings, RetrySettings
from serving.pool_settings import PoolSettings
from serving.providers.openai import OpenAI
from serving.records import Caller
from serving.request_headers import Hints
from serving.routing import Routing
from serving.traffic.batching import Shared
from serving.traffic.canaries import Canary
from serving.traffic.state import Traffic
from serving.traffic.steering import Steering
from serving.wire import parse_call

ANYONE = Principal()
ONCE = FailureSettings(retries=RetrySettings(max_attempts=1))
AGAIN = FailureSettings(retries=RetrySettings(backoff_s=0.0))
GOOD = {"usage": {"prompt_tokens": 3, "completion_tokens": 2}}
CHUNKS = [
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    (
        b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    ),
    b"data: [DONE]\n\ndata: {what comes after the end\n\n",
]


class Endpoint:
    """An endpoint: answers with what it is given, or raises it, one after the other."""

    def __init__(self, model, answers):
        self.model, self.name, self.answers = model, "1", answers
        self.breaker, self.under_way, self.asked = Breaker(BreakerSettings()), 0, []

    def available(self, now):
        return self.breaker.allows(now)

    rested = available

    def _next(self, body):
        self.asked.append(orjson.loads(body))
        return self.answers[min(len(self.asked), len(self.answers)) - 1]

    async def send_shared(self, call, _tenant, send_one):
        return Shared(await send_one(call))

    async def send(self, _call, body):
        answer = self._next(body)
        if isinstance(answer, BaseException):
            raise answer
        return dict(answer)

    @asynccontextmanager
    async def stream(self, _call, body):
        answer = self._next(body)

        async def chunks():
            for chunk in answer:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk

        yield chunks()


class Model:
    """One model with one endpoint; any answer costs 0.25 USD."""

    def __init__(self, name, answers):
        self.name, self.upstream_model, self.timeout_s, self.max_output_tokens = name, f"{name}-upstream", 60.0, None
        self.unasked_output_tokens = None
        self.arm, self.provider, self.endpoints = Arm(name, None), OpenAI(), (Endpoint(name, answers),)

    def cost_usd(self, usage, *, answered=False, calls=1):  # noqa: ARG002 - what the real one takes
        return None if usage.input_tokens is None or usage.output_tokens is None else 0.25

    def available(self, now):
        return self.endpoints[0].available(now)

    def retry_after_s(self, now):
        return self.endpoints[0].breaker.wait_s(now)

    def pick(self, rng, now, avoid=frozenset()):  # noqa: ARG002 - what the real one takes
        return self.endpoints[0] if self.available(now) else None


class Models(dict):
    """All of them."""

    def available(self, name):
        return name in self and self[name].available(time.monotonic())

    rested = available

    def all_ready(self, names, call):
        return all(self.serves(n, call.kind) and self.can_say(n, call) and self.rested(n) for n in names)

    def serves(self, name, kind):
        return name in self and kind != "infer"

    def can_say(self, name, call):
        return self[name].provider.can_say(call)


def call(model="auto", **more):
    body = {"model": model, "messages": [{"role": "user", "content": "which of the two?"}]} | more
    return parse_call("chat/completions", body, Hints(), 10)


@pytest.fixture
def routing(make_learner):
    """Makes the routing over models `a` and `b` that answer alike; `failures`: what is done about theirs."""

    def routing(*answers, failures=ONCE, ledger=None):
        learner, models = make_learner(), Models({name: Model(name, answers) for name in "ab"})
        pool = PoolSettings(name="auto", models=("a", "b"))
        traffic = Traffic([pool], {"auto": Canary(learner.pools["auto"], None)})
        means = Means(learner, models, ledger or Ledger(), random.Random(5), 100)
        steering = Steering(learner, traffic, models, b"k" * 32, np.random.default_rng(1))
        return Routing(means, steering, {}, failures, traffic.usable)

    return routing


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


def outcomes(held_store):
    return [orjson.loads(e.payload) for e in held_store.committed + held_store.waiting if e.kind == "outcome"]


async def test_an_answer_waits_until_its_decision_is_durable(routing, held_store):
    """The endpoint is asked at once; a commit of the decision alone releases the answer."""
    router = routing({"usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    task = asyncio.create_task(router.complete(call(), Caller(ANYONE)))
    await turns()
    assert [event.kind for event in held_store.waiting] == ["decision", "outcome"]
    assert not task.done()
    held_store.commit(1)
    answer = await task
    assert orjson.loads(answer.body)["id"] == answer.decision.decision_id
    assert (answer.outcome.output_tokens, answer.outcome.cost_usd, answer.outcome.tokens_estimated) == (2, 0.25, False)


async def test_a_stream_waits_until_its_decision_is_durable(routing, held_store):
    router, events = routing(CHUNKS), []

    async def read():
        async with router.stream(call(stream=True), Caller(ANYONE)) as answer:
            events.extend([event async for event in answer.events])

    task = asyncio.create_task(read())
    await turns()
    assert ([event.kind for event in held_store.waiting], events) == (["decision"], [])
    held_store.commit()
    await task
    assert b"".join(events).endswith(b"data: [DONE]\n\n")
    assert b"".join(events).count(b"data: ") == 3
    (outcome,) = outcomes(held_store)
    assert (outcome["status"], outcome["input_tokens"], outcome["output_tokens"]) == ("ok", 3, 2)


@pytest.mark.parametrize(
    ("raised", "status", "http_status", "error"),
    [
        (UpstreamError("a", "no", 500), "error", 500, "upstream_error"),
        (UpstreamTimeout("a", 1.0), "timeout", None, "upstream_timeout"),
        (asyncio.CancelledError(), "cancelled", None, "caller_went_away"),
        (CallerGone("gone"), "cancelled", None, "caller_went_away"),
        (ZeroDivisionError("ours"), "error", None, "ZeroDivisionError"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_whatever_happens_there_is_one_outcome(routing, held_store, stream, raised, status, http_status, error):  # noqa: PLR0917 - a row's columns
    router = routing([*CHUNKS[:1], raised] if stream else raised)

    async def ask():
        if not stream:
            await router.complete(call(), Caller(ANYONE))
        else:
            async with router.stream(call(stream=True), Caller(ANYONE)) as answer:
                async for _ in answer.events:
                    pass

    task = asyncio.create_task(ask())
    await turns()
    held_store.commit()
    with pytest.raises(type(raised)):
        await task
    (outcome,) = outcomes(held_store)
    assert (outcome["status"], outcome["http_status"], outcome["error"]) == (status, http_status, error)
    assert (outcome["output_tokens"], outcome["tokens_estimated"]) == ((1, True) if stream else (None, False))


async def test_a_call_is_in_flight_until_it_has_its_outcome(routing, held_store, make_learner):
    router = routing(CHUNKS)
    task = None

    async def read():
        async with router.stream(call(stream=True), Caller(ANYONE)) as answer:
            record = router._means.learner.find(answer.decision.decision_id)
            assert (record.in_flight, record.outcome) == (True, None)
            async for _ in answer.events:
                pass
        assert (record.in_flight, record.outcome.status) == (False, "ok")

    task = asyncio.create_task(read())
    await turns()
    held_store.commit()
    await task


async def test_a_model_that_is_named_is_pinned(routing, held_store):
    router = routing({})
    task = asyncio.create_task(router.complete(call("b"), Caller(ANYONE)))
    await turns()
    held_store.commit()
    decision = (await task).decision
    assert (decision.mode, decision.pool, decision.chosen, decision.propensity) == ("pinned", "b", "b", 1.0)
    assert router._means.learner.pools["auto"].step == 0
    assert router._means.upstreams["b"].endpoints[0].asked[0]["model"] == "b-upstream"


def test_a_name_nobody_has_is_not_decided_on(routing, held_store):
    with pytest.raises(UnknownModel, match="did you mean 'auto'"):
        routing({}).decide(call("autp"), Caller(ANYONE), ts=1.0)
    assert held_store.position == 0


async def answered(router, held_store, caller=Caller(ANYONE), **more):  # noqa: B008 - nothing in it changes
    """What a call gets, its decision durable as soon as it is written."""
    task = asyncio.create_task(router.complete(call(**more), caller))
    while not task.done():
        await asyncio.sleep(0)
        held_store.commit()
    return await task


async def test_a_failed_attempt_is_followed_by_one_elsewhere(routing, held_store):
    """The other model answers, and both attempts are in the log."""
    router = routing(GOOD, failures=AGAIN)
    first = router.decide(call(), Caller(ANYONE), ts=1.0)[0].chosen
    router._means.upstreams[first].endpoints[0].answers = [UpstreamError(first, "no", 500)]
    other = {"a": "b", "b": "a"}[first]
    router._means.upstreams[other].endpoints[0].answers = [UpstreamError(other, "no", 503), GOOD]
    answer = await answered(router, held_store)
    rows = outcomes(held_store)
    assert [row["attempt"] for row in rows] == list(range(len(rows)))
    assert [row["status"] for row in rows] == ["error"] * (len(rows) - 1) + ["ok"]
    assert {row["model"] for row in rows[:2]} == {"a", "b"}
    assert (answer.attempts, answer.outcome.attempt, answer.outcome.model) == (len(rows), len(rows) - 1, other)
    assert orjson.loads(answer.body)["model"] == other


async def test_the_callers_own_fault_is_not_tried_again(routing, held_store):
    refusal = UpstreamRefused("a", 400, {"message": "no such field"})
    with pytest.raises(UpstreamRefused, match="no such field"):
        await answered(routing(refusal, failures=AGAIN), held_store)
    assert len(outcomes(held_store)) == 1


async def test_what_one_model_cannot_read_another_may(routing, held_store):
    """A context too long for one model leads to the other; where that refuses it too, the caller is told so."""
    router = routing(GOOD, failures=AGAIN)
    for name, model in router._means.upstreams.items():
        model.endpoints[0].answers = [UpstreamRefused(name, 400, {"message": "too long"}, "context_window")]
    with pytest.raises(UpstreamRefused, match="too long"):
        await answered(router, held_store)
    assert sorted(row["model"] for row in outcomes(held_store)) == ["a", "b"]


async def test_when_all_attempts_fail_it_is_said_what_was_tried(routing, held_store):
    with pytest.raises(NothingAvailable) as caught:
        await answered(routing(UpstreamError("a", "down", 500), failures=AGAIN), held_store)
    rows = outcomes(held_store)
    assert len(rows) == len(caught.value.tried) > 2
    assert caught.value.decision_id == rows[0]["decision_id"]
    assert all(each["status"] == 500 for each in caught.value.tried)


async def test_the_time_before_a_call_was_routed_counts_towards_its_deadline(routing, held_store):
    """It arrived 200 s ago and has 120 s: there is no time for a second attempt."""
    router = routing(UpstreamError("a", "down", 500), failures=AGAIN)
    arrived = asyncio.get_running_loop().time() - 200.0
    with pytest.raises(DeadlineExceeded):
        await answered(router, held_store, Caller(ANYONE, arrived=arrived))
    assert len(outcomes(held_store)) == 1


async def test_a_stream_falls_back_before_its_first_event_and_never_after(routing, held_store):
    """Before: the other model's answer is all that is seen. After: the error ends it, and nobody else is asked."""
    for broken, attempts in (([UpstreamError("a", "no", 500)], 2), ([CHUNKS[0], UpstreamError("a", "no", 500)], 1)):
        router, events = routing(broken, CHUNKS, failures=AGAIN), []
        for model in router._means.upstreams.values():
            model.endpoints[0].answers = [broken, CHUNKS]
        before = len(outcomes(held_store))

        async def read(router=router, events=events):
            async with router.stream(call(stream=True), Caller(ANYONE)) as answer:
                events.extend([event async for event in answer.events])

        task = asyncio.create_task(read())
        while not task.done():
            await asyncio.sleep(0)
            held_store.commit()
        made = len(outcomes(held_store)) - before
        if attempts == 1:
            with pytest.raises(UpstreamError):
                await task
            assert made == 1
        else:
            await task
            assert made > 1
            assert b"".join(events).endswith(b"data: [DONE]\n\n")
