"""Streams on their way through routing: when one has ended, what its first token is, and whose time passes."""

from __future__ import annotations

import asyncio
import time

import pytest
import test_routing
from test_routing import ANYONE, CHUNKS, call, outcomes

from serving.access.budget_settings import LimitEntry
from serving.access.rates import Rates
from serving.errors import CallerGone, UpstreamError, UpstreamTimeout
from serving.intake import Intake
from serving.records import Caller


async def streamed(router, held_store, read=None, caller=None, asked=None):
    """The events of a streamed call, or what it raises; `read`: how its caller takes each."""
    events = []

    async def ask():
        async with router.stream(asked or call(stream=True), caller or Caller(ANYONE)) as answer:
            async for event in answer.events:
                events.append(event)
                if read is not None:
                    await read()

    task = asyncio.create_task(ask())
    while not task.done():
        await asyncio.sleep(0)
        held_store.commit()
    await task
    return b"".join(events)


routing = test_routing.routing  # the fixture
ENDED = b'data: {"choices":[{"index":0,"delta":{"content":"b"},"finish_reason":"stop"}]}\n\n'


async def test_a_stream_that_came_to_its_end_needs_no_last_word(routing, held_store):
    """Some servers leave `[DONE]` out; callers get it all the same."""
    events = await streamed(routing([CHUNKS[0], ENDED]), held_store)
    assert (events.count(b"data: {"), events[-14:]) == (2, b"data: [DONE]\n\n")
    assert outcomes(held_store)[0]["status"] == "ok"
    with pytest.raises(UpstreamError, match="ended early"):
        await streamed(routing([CHUNKS[0]]), held_store)


async def test_what_only_keeps_a_connection_alive_is_no_first_token(routing, held_store):
    class Slowly(list):
        """Chunks, with a pause after the first."""

        def __iter__(self):
            for i, chunk in enumerate(super().__iter__()):
                if i == 1:
                    time.sleep(0.05)
                yield chunk

    await streamed(routing(Slowly([b": PROCESSING\n\n", *CHUNKS])), held_store)
    assert outcomes(held_store)[0]["time_to_first_token_s"] >= 0.05


async def test_the_time_that_a_caller_takes_to_read_is_not_the_models(routing, held_store):
    """It stops reading until the attempt's time is over: no failure, no slow answer, nothing for the breaker."""
    router = routing(CHUNKS)
    for model in router._means.upstreams.values():
        model.timeout_s = 0.2
    with pytest.raises(UpstreamTimeout):
        await streamed(router, held_store, read=lambda: asyncio.sleep(60))
    (outcome,) = outcomes(held_store)
    assert (outcome["status"], outcome["error"]) == ("cancelled", "caller_read_slowly")
    assert outcome["latency_s"] < 0.1


async def test_a_caller_who_left_while_it_should_have_read_was_not_waiting_for_the_model(routing, held_store):
    async def read():
        await asyncio.sleep(0.1)
        raise CallerGone("stopped reading")

    with pytest.raises(CallerGone):
        await streamed(routing(CHUNKS), held_store, read=read)
    (outcome,) = outcomes(held_store)
    assert (outcome["status"], outcome["latency_s"] < 0.1) == ("cancelled", True)


async def test_tokens_of_a_stream_that_its_caller_left_count_against_its_rate(routing, held_store):
    """Else a limit of tokens would be none to whoever hangs up before the last event."""
    caller, limit = Caller(ANYONE), LimitEntry(scope="all", tokens_per_minute=1_000)
    intake = Intake(None, Rates([limit]), None, None, None)
    asked = call(stream=True, max_tokens=500)
    taken = await intake.take(asked, caller, 1.0)

    async def read():
        raise CallerGone("it has read enough")

    with pytest.raises(CallerGone):
        await streamed(routing(CHUNKS), held_store, read=read, caller=caller, asked=asked)
    intake.settle(taken, caller, 1.0)
    (outcome,) = outcomes(held_store)
    assert caller.tokens == outcome["input_tokens"] + outcome["output_tokens"] > 0
    told = (await intake.take(asked, Caller(ANYONE), 1.0)).headers["x-ratelimit-remaining-tokens"]
    assert int(told) == 1_000 - caller.tokens - asked.prompt.input_tokens - 500
