"""Streams that fail: before the first byte another model takes over, after it the caller hears of it."""

from __future__ import annotations

import asyncio

import aiohttp
import openai
import orjson
import pytest
from scripted_upstream import Scripted

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        yield scripted


@pytest.fixture(scope="module")
def service(run_service, scripted, tmp_path_factory):
    models = [scripted.model(name, timeout_s=0.5) for name in ("first", "second")]
    breaker = {"min_calls": 2, "failure_share": 0.5, "open_s": 60.0, "max_open_s": 60.0}
    models += [scripted.model("watched", timeout_s=5.0, breaker=breaker)]
    failures = {"retries": {"backoff_s": 0.01, "burst": 1000}}
    pools = [
        {"name": "auto", "models": ["first", "second"], "weights": {"first": 1}, "failures": failures},
        {"name": "alone", "models": ["watched"], "failures": failures},
    ]
    with run_service({"models": models, "pools": pools}, tmp_path_factory.mktemp("streams")) as service:
        yield service


@pytest.fixture
def stream(service, http):
    """All of a streamed answer: status, headers, events without the empty last one."""

    async def stream(pool="auto"):
        body = {"model": pool, "messages": MESSAGES, "stream": True}
        async with http.post(f"{service.url}/v1/chat/completions", json=body) as response:
            raw = (await response.read()).decode()
        return response.status, response.headers, [e.removeprefix("data: ") for e in raw.split("\n\n") if e]

    return stream


@pytest.fixture
def outcomes(service, wait_until):
    async def outcomes(decision_id, count):
        await wait_until(lambda: len(service.events("outcome", decision_id)) >= count)
        await asyncio.sleep(0.05)  # were there one more, it would be on its way
        return [event["payload"] for event in service.events("outcome", decision_id)]

    return outcomes


@pytest.mark.parametrize("what", ["500", "reset", "hang", "slow-2", "stall-early"])
async def test_before_the_first_byte_another_model_takes_over(stream, scripted, outcomes, what):
    """Whether it refuses, breaks off, is silent or merely slow; the caller sees one sound stream of one decision."""
    scripted.plans["first"].append(what)
    told, headers, events = await stream()
    assert (told, events[-1]) == (200, "[DONE]")
    chunks = [orjson.loads(event) for event in events[:-1]]
    assert {(c["id"], c["model"]) for c in chunks} == {(headers["x-pointsman-decision-id"], "second")}
    assert "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]) == "onetwo"
    rows = await outcomes(headers["x-pointsman-decision-id"], 2)
    assert [(row["model"], row["status"]) for row in rows][1:] == [("second", "ok")]
    assert rows[0]["status"] in {"error", "timeout"}


@pytest.mark.parametrize(("what", "status"), [("reset-midway", "error"), ("stall", "timeout"), ("malformed", "error")])
async def test_after_the_first_byte_the_stream_ends_in_an_error_event(stream, scripted, outcomes, what, status):
    """Nobody else is asked: the caller has read a part of this answer."""
    asked = scripted.calls("second")
    scripted.plans["first"].append(what)
    told, headers, events = await stream()
    assert (told, headers.get("x-pointsman-attempts", "1")) == (200, "1")
    assert orjson.loads(events[0])["choices"][0]["delta"]["content"] == "one"
    assert orjson.loads(events[-1])["error"]["code"].startswith("upstream_")
    (row,) = await outcomes(headers["x-pointsman-decision-id"], 1)
    assert (row["model"], row["status"]) == ("first", status)
    assert scripted.calls("second") == asked


async def test_the_client_library_reads_on_as_if_nothing_had_been(service, scripted):
    scripted.plans["first"].append("500")
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        answer = await client.chat.completions.create(model="auto", messages=MESSAGES, stream=True)
        chunks = [part async for part in answer]
    assert "".join(part.choices[0].delta.content or "" for part in chunks if part.choices) == "onetwo"
    assert {part.model for part in chunks} == {"second"}


async def test_callers_who_leave_are_cancelled_calls_and_open_no_breaker(service, scripted, outcomes, stream):
    """Two failed attempts would open this endpoint's breaker for a minute; three that were given up do not."""
    scripted.rest["watched"] = "endless"
    body = {"model": "alone", "messages": MESSAGES, "stream": True}
    for left in range(1, 4):
        async with aiohttp.ClientSession() as session:  # noqa: SIM117 - what is left first closes last
            async with session.post(f"{service.url}/v1/chat/completions", json=body) as response:
                await response.content.readuntil(b"\n\n")
                decision_id = response.headers["x-pointsman-decision-id"]
                response.close()
        (row,) = await outcomes(decision_id, 1)
        assert row["status"] == "cancelled"
        assert scripted.calls("watched") == left
    scripted.rest["watched"] = "ok"
    told, _, events = await stream("alone")
    assert (told, events[-1]) == (200, "[DONE]")
