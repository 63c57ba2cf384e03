"""The way of one call, on a slow disk: nothing is released before its decision is durable, and each has one outcome."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager

import orjson
import pytest

from serving.admission import Principal
from serving.errors import CallerGone, UnknownModel, UpstreamError, UpstreamTimeout
from serving.request_headers import Hints
from serving.routing import Routing
from serving.wire import parse_call

ANYONE = Principal()
CHUNKS = [
    b'data: {"choices":[{"delta":{"content":"a"}}]}\n\n',
    (
        b'data: {"choices":[{"delta":{"content":"b"}}]}\n\n'
        b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    ),
    b"data: [DONE]\n\ndata: {what comes after the end\n\n",
]


class Endpoint:
    """One model: answers with what it is given, or raises it."""

    def __init__(self, name, answer):
        self.name, self.upstream_model, self.answer = name, f"{name}-upstream", answer
        self.asked = []

    def cost_usd(self, input_tokens, output_tokens, cached_tokens=None):  # noqa: ARG002 - what the real one takes
        return None if input_tokens is None or output_tokens is None else 0.25

    async def send(self, kind, body):
        self.asked.append((kind, orjson.loads(body)))
        if isinstance(self.answer, BaseException):
            raise self.answer
        return dict(self.answer)

    @asynccontextmanager
    async def stream(self, kind, body):
        self.asked.append((kind, orjson.loads(body)))

        async def chunks():
            for chunk in self.answer:
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk

        yield chunks()


def call(model="auto", **more):
    body = {"model": model, "messages": [{"role": "user", "content": "which of the two?"}]} | more
    return parse_call("chat/completions", body, Hints(), 10)


@pytest.fixture
def routing(make_learner):
    """Makes the routing over models `a` and `b` that answer alike."""

    def routing(answer):
        return Routing(make_learner(), {name: Endpoint(name, answer) for name in "ab"})

    return routing


async def turns(count=10):
    for _ in range(count):
        await asyncio.sleep(0)


def outcomes(held_store):
    return [orjson.loads(e.payload) for e in held_store.committed + held_store.waiting if e.kind == "outcome"]


async def test_an_answer_waits_until_its_decision_is_durable(routing, held_store):
    """The endpoint is asked at once; a commit of the decision alone releases the answer."""
    router = routing({"usage": {"prompt_tokens": 3, "completion_tokens": 2}})
    task = asyncio.create_task(router.complete(call(), ANYONE, {}))
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
        async with router.stream(call(stream=True), ANYONE, {}) as answer:
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
            await router.complete(call(), ANYONE, {})
        else:
            async with router.stream(call(stream=True), ANYONE, {}) as answer:
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
        async with router.stream(call(stream=True), ANYONE, {}) as answer:
            record = router._learner.find(answer.decision.decision_id)
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
    task = asyncio.create_task(router.complete(call("b"), ANYONE, {}))
    await turns()
    held_store.commit()
    decision = (await task).decision
    assert (decision.mode, decision.pool, decision.chosen, decision.propensity) == ("pinned", "b", "b", 1.0)
    assert router._learner.pools["auto"].step == 0
    assert router._upstreams["b"].asked[0][1]["model"] == "b-upstream"


def test_a_name_nobody_has_is_not_decided_on(routing, held_store):
    with pytest.raises(UnknownModel, match="did you mean 'auto'"):
        routing({}).decide(call("autp"), ts=1.0)
    assert held_store.position == 0
