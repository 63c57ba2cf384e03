"""Callers who leave before they have their answer: the upstream call is cancelled, and its outcome says so."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket

import aiohttp
import openai
import orjson
import pytest
from aiohttp import web

MESSAGES = [{"role": "user", "content": "tell me about the points"}]
FLOOD = b'data: {"choices":[{"delta":{"content":"%s"}}]}\n\n' % (b"x" * 60_000)


async def flood(request):
    """More than any buffer holds, for as long as somebody reads."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    with contextlib.suppress(ConnectionError):
        for _ in range(5_000):
            await response.write(FLOOD)
    return response


@pytest.fixture(scope="module")
def service(run_service, serve_in_thread, trial, tmp_path_factory):
    app = web.Application()
    app.router.add_post("/v1/chat/completions", flood)
    with serve_in_thread(app) as flood_url:
        models = [trial.model("good"), trial.model("slow"), {"name": "flood", "endpoint": f"{flood_url}/v1"}]
        config = {
            "server": {"body_timeout_s": 0.7},
            "models": [*models, trial.model("stuck", upstream_model="stall", timeout_s=60)],
            "pools": [{"name": "auto", "models": ["good"]}],
        }
        with run_service(config, tmp_path_factory.mktemp("leaving")) as service:
            yield service


async def _outcome_of(service, model, wait_until):
    """The only outcome of a model's last decision."""

    def decisions():
        return [event for event in service.events("decision") if event["payload"]["chosen"] == model]

    await wait_until(decisions)
    return await service.outcome(decisions()[-1]["decision_id"])


async def test_a_caller_who_leaves_a_stream_cancels_the_upstream_call(service, trial, http):
    """Its outcome has the tokens that came, estimated, and what they cost."""
    before = await trial.seen(http, "stall")
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(model="stuck", messages=MESSAGES, stream=True)
        chunk = await anext(aiter(stream))
        await stream.close()
    outcome = await service.outcome(chunk.id)
    assert (outcome["status"], outcome["error"]) == ("cancelled", "caller_went_away")
    assert (outcome["http_status"], outcome["stream"], outcome["tokens_estimated"]) == (None, True, True)
    assert outcome["output_tokens"] >= 1
    assert outcome["input_tokens"] == len(MESSAGES[0]["content"]) // 4
    expected_usd = (outcome["input_tokens"] + 10 * outcome["output_tokens"]) / 1e6
    assert outcome["cost_usd"] == pytest.approx(expected_usd)
    await _until_cancelled(trial, http, "stall", before["cancelled"] + 1)


async def test_a_caller_who_leaves_before_the_answer_cancels_the_upstream_call(service, trial, http, wait_until):
    before = await trial.seen(http, "slow")
    body = {"model": "slow", "messages": MESSAGES}
    async with aiohttp.ClientSession() as session:
        call = asyncio.create_task(session.post(f"{service.url}/v1/chat/completions", json=body))
        async with asyncio.timeout(10):
            while (await trial.seen(http, "slow"))["started"] == before["started"]:  # noqa: ASYNC110 - as below
                await asyncio.sleep(0.01)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await call
    await _until_cancelled(trial, http, "slow", before["cancelled"] + 1)
    outcome = await _outcome_of(service, "slow", wait_until)
    assert (outcome["status"], outcome["stream"], outcome["tokens_estimated"]) == ("cancelled", False, False)
    assert (outcome["output_tokens"], outcome["cost_usd"]) == (None, None)


async def test_a_caller_who_stops_reading_is_a_caller_who_left(service, wait_until):
    """After `body_timeout_s`: else a stream would hold its upstream, its memory and its connection."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    body = orjson.dumps({"model": "flood", "messages": MESSAGES, "stream": True})
    request = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        connection.sendall(request.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
        connection.recv(1)
        outcome = await _outcome_of(service, "flood", wait_until)
        assert (outcome["status"], outcome["tokens_estimated"]) == ("cancelled", True)
        connection.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(1 << 20):  # what was on its way, and then the end
                pass


async def test_callers_who_leave_at_any_moment(service, http):
    """Before the decision is durable, between two events, after the last: the last test looks at what that left."""
    rng = random.Random(20_240_725)

    async def leave(model, stream, after_s):
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(after_s), aiohttp.ClientSession() as session:
                body = {"model": model, "messages": MESSAGES, "stream": stream}
                async with session.post(f"{service.url}/v1/chat/completions", json=body) as response:
                    await response.read()

    for _ in range(10):
        models = rng.choices(["good", "slow", "stuck", "flood"], k=20)
        await asyncio.gather(*(leave(model, rng.random() < 0.5, rng.uniform(0.0, 0.06)) for model in models))
    async with http.post(
        f"{service.url}/v1/chat/completions", json={"model": "good", "messages": MESSAGES}
    ) as response:
        assert response.status == 200


async def _until_cancelled(trial, http, model, count):
    async with asyncio.timeout(10):
        while (await trial.seen(http, model))["cancelled"] < count:  # noqa: ASYNC110 - another process's counter
            await asyncio.sleep(0.01)


async def test_after_all_this_no_decision_has_other_than_one_outcome(service):
    """And nothing surprised the service, which ends without waiting for anyone."""
    assert service.stop() == 0
    decisions = sorted(event["decision_id"] for event in service.events("decision"))
    assert sorted(event["decision_id"] for event in service.events("outcome")) == decisions
    assert "Traceback" not in service.log
    assert "never retrieved" not in service.log
