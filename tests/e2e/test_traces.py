"""Traces as a receiver of OpenTelemetry's protocol sees them, and what callers and endpoints see of them."""

from __future__ import annotations

import asyncio
import re
import secrets

import aiohttp
import pytest
from openai import AsyncOpenAI
from otlp_receiver import Receiver
from scripted_upstream import Scripted

PROMPT = "a prompt that nobody else may read"
KEY = "sk-upstream-key-nobody-may-see"
QUIET = {"breaker": {"enabled": False}}
RETRIES = {"retries": {"backoff_s": 0.01, "burst": 1000}}


def config(scripted, receiver_url, **tracing):
    names = ("good", "bad", "worse", "refuses", "breaks", "endless")
    pools = [
        {"name": "auto", "models": ["good"]},
        {"name": "falls", "models": ["bad", "good"], "weights": {"bad": 1}, "failures": RETRIES},
        {"name": "fails", "models": ["worse"], "failures": {"retries": {"max_attempts": 1}}},
        {"name": "refused", "models": ["refuses"]},
        {"name": "broken", "models": ["breaks"]},
        {"name": "kept", "models": ["good"], "cache": {"only_deterministic": False}},
    ]
    tracing = {"endpoint": receiver_url, "flush_interval_s": 0.05, "service_name": "router"} | tracing
    models = [scripted.model(name, api_key=KEY, upstream_model=f"{name}-v1", **QUIET) for name in names]
    return {"models": models, "pools": pools, "tracing": tracing}


@pytest.fixture(scope="module")
def scripted(serve_in_thread):
    scripted = Scripted()
    with serve_in_thread(scripted.app) as scripted.url:
        scripted.rest |= {"bad": "500", "worse": "500", "refuses": "bad-request", "breaks": "reset-midway"}
        scripted.rest["endless"] = "endless"
        yield scripted


@pytest.fixture(scope="module")
def receiver(serve_in_thread):
    receiver = Receiver()
    with serve_in_thread(receiver.app) as receiver.url:
        yield receiver


@pytest.fixture(scope="module")
def service(run_service, scripted, receiver, tmp_path_factory):
    settings = config(scripted, receiver.url, headers={"x-team": "secret-of-the-receiver"})
    with run_service(settings, tmp_path_factory.mktemp("traces")) as service:
        yield service


@pytest.fixture
def traced(service, receiver, http, wait_until):
    """Make a call as one that traces itself; its response, and the spans of its trace, the root first."""

    async def traced(model, trace_id=None, **more):
        trace_id = trace_id or secrets.token_hex(16)
        headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "tracestate": "vendor=7,other=x"}
        body = {"model": model, "messages": [{"role": "user", "content": PROMPT}], **more}
        async with http.post(f"{service.url}/v1/chat/completions", json=body, headers=headers) as response:
            await response.read()
        return response, await wait_until(lambda: receiver.trace(trace_id))

    return traced


def by_name(spans, name):
    (found,) = [span for span in spans if span["name"] == name]
    return found


async def test_a_call_is_a_tree_of_its_parts_within_the_callers_trace(traced, scripted):
    response, spans = await traced("auto")
    assert [span["name"] for span in spans] == ["chat auto", "admission", "decision", "logging", "chat good-v1"]
    root, *children = spans
    assert root["parent"] == "00f067aa0ba902b7"
    assert {child["parent"] for child in children} == {root["id"]}
    assert {span["state"] for span in spans} == {"vendor=7,other=x"}
    assert {span["resource"]["service.name"] for span in spans} == {"router"}
    assert [s["name"] for s in children if not root["begun"] <= s["begun"] <= s["ended"] <= root["ended"]] == []
    assert not any(span["failed"] for span in spans)
    attempt = by_name(spans, "chat good-v1")
    sent = scripted.headers["good"][-1]
    assert sent["traceparent"] == f"00-{root['trace_id']}-{attempt['id']}-01"
    assert sent["tracestate"] == "vendor=7,other=x"
    assert response.status == 200


async def test_spans_speak_the_conventions_for_generative_ai(traced):
    response, spans = await traced("auto")
    decision_id = response.headers["x-pointsman-decision-id"]
    root, attempt, decision = spans[0], by_name(spans, "chat good-v1"), by_name(spans, "decision")
    assert root["kind"] == "server"
    assert root["gen_ai.operation.name"] == "chat"
    assert root["gen_ai.request.model"] == "auto"
    assert root["gen_ai.response.model"] == "good"
    assert root["gen_ai.response.id"] == root["pointsman.decision_id"] == decision_id
    assert root["http.response.status_code"] == 200
    assert root["http.route"] == "/v1/chat/completions"
    assert root["pointsman.request_id"] == response.headers["x-request-id"]
    assert root["pointsman.attempts"] == 1
    assert "gen_ai.usage.input_tokens" not in root, "tokens would count twice"
    for span in (root, decision):
        assert span["pointsman.pool"] == "auto"
        assert span["pointsman.mode"] == "bandit"
        assert span["pointsman.propensity"] == 1.0
    assert attempt["kind"] == "client"
    assert attempt["gen_ai.provider.name"] == "openai"
    assert attempt["gen_ai.request.model"] == "good-v1"
    assert (attempt["gen_ai.usage.input_tokens"], attempt["gen_ai.usage.output_tokens"]) == (10, 5)
    assert attempt["pointsman.cost_usd"] == pytest.approx(10e-6 + 50e-6)
    assert (attempt["pointsman.attempt"], attempt["pointsman.endpoint"]) == (0, "1")
    assert attempt["server.address"] == "127.0.0.1"
    assert attempt["http.response.status_code"] == 200


async def test_a_fallback_is_two_attempts_each_its_endpoints_parent(traced, scripted):
    _, spans = await traced("falls")
    attempts = [span for span in spans if span["kind"] == "client"]
    assert [span["name"] for span in attempts] == ["chat bad-v1", "chat good-v1"]
    assert [span["pointsman.attempt"] for span in attempts] == [0, 1]
    assert [span["failed"] for span in attempts] == [True, False]
    assert attempts[0]["error.type"] == "upstream_error"
    assert attempts[0]["http.response.status_code"] == 500
    for name, span in zip(("bad", "good"), attempts, strict=True):
        assert scripted.headers[name][-1]["traceparent"].split("-")[2] == span["id"]
    root = spans[0]
    assert not root["failed"]
    assert (root["gen_ai.response.model"], root["pointsman.attempts"]) == ("good", 2)


@pytest.mark.parametrize(
    ("pool", "status", "code", "failed"),
    [("fails", 502, "upstream_error", True), ("refused", 400, "upstream_refused", False)],
)
async def test_an_error_is_the_roots_and_a_refusal_is_no_fault_of_the_service(traced, pool, status, code, failed):
    _, spans = await traced(pool)
    root, attempt = spans[0], spans[-1]
    assert root["http.response.status_code"] == status
    assert (root["error.type"], root["failed"]) == (code, failed)
    assert attempt["failed"]
    assert "gen_ai.response.model" not in root


async def test_a_call_that_is_not_let_in_ends_in_its_admission(traced):
    _, spans = await traced("nobody-knows")
    assert [span["name"] for span in spans] == ["chat", "admission"]
    assert {span["error.type"] for span in spans} == {"model_not_found"}


async def test_a_stream_lasts_until_its_last_event(traced):
    _, spans = await traced("auto", stream=True)
    root, attempt = spans[0], by_name(spans, "chat good-v1")
    assert root["gen_ai.request.stream"] is attempt["gen_ai.request.stream"] is True
    assert 0 < attempt["gen_ai.response.time_to_first_chunk"] * 1e9 < attempt["ended"] - attempt["begun"]
    assert attempt["gen_ai.usage.output_tokens"] == 2
    assert root["ended"] >= attempt["ended"]


async def test_a_stream_that_breaks_off_failed_though_it_began_well(traced):
    response, spans = await traced("broken", stream=True)
    assert response.status == 200
    assert (spans[0]["failed"], spans[0]["error.type"]) == (True, "upstream_disconnected")
    assert spans[-1]["failed"]


async def test_a_caller_who_leaves_is_seen_to(service, receiver, wait_until):
    trace_id = secrets.token_hex(16)
    body = {"model": "endless", "stream": True, "messages": [{"role": "user", "content": PROMPT}]}
    headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{service.url}/v1/chat/completions", json=body, headers=headers) as response,
    ):
        await response.content.readany()
    spans = await wait_until(lambda: receiver.trace(trace_id))
    attempt = by_name(spans, "chat endless-v1")
    assert {spans[0]["error.type"], attempt["error.type"]} == {"caller_went_away"}
    assert spans[0]["failed"]
    assert "http.response.status_code" not in spans[0]


async def test_an_answer_from_the_cache_has_no_attempt(traced):
    await traced("kept")
    _, spans = await traced("kept")
    assert [span["name"] for span in spans] == ["chat kept", "admission", "logging"]
    assert spans[0]["pointsman.mode"] == "cached"
    assert spans[0]["gen_ai.response.model"] == "good"


async def test_a_caller_that_does_not_trace_gets_a_trace_of_its_own(service, receiver, scripted, wait_until):
    client = AsyncOpenAI(base_url=f"{service.url}/v1", api_key="any")
    answer = await client.chat.completions.create(model="auto", messages=[{"role": "user", "content": PROMPT}])
    (root,) = await wait_until(
        lambda: [s for s in receiver.spans if s.get("gen_ai.response.id") == answer.id and s["kind"] == "server"]
    )
    assert root["parent"] == ""
    assert re.fullmatch(rf"00-{root['trace_id']}-[0-9a-f]{{16}}-01", scripted.headers["good"][-1]["traceparent"])
    assert len({span["id"] for span in receiver.spans}) == len(receiver.spans)


async def test_what_a_caller_does_not_record_is_not_recorded_but_passed_on(service, receiver, scripted, http):
    given = f"00-{secrets.token_hex(16)}-00f067aa0ba902b7-00"
    body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}
    async with http.post(f"{service.url}/v1/chat/completions", json=body, headers={"traceparent": given}):
        assert scripted.headers["good"][-1]["traceparent"] == given
    await asyncio.sleep(0.2)
    assert receiver.trace(given.split("-")[1]) == []


async def test_no_prompt_and_no_key_is_in_any_span(traced, receiver, service):
    await traced("falls")
    for secret in (PROMPT, KEY, "secret-of-the-receiver", "from good"):
        assert secret.encode() not in receiver.raw
        assert secret not in service.log
    assert receiver.headers[-1]["x-team"] == "secret-of-the-receiver"


async def counted(http, service, result, least):
    """How many spans came to this, once there are so many."""
    for _ in range(500):
        async with http.get(f"{service.url}/metrics") as response:
            found = re.search(rf'trace_spans_total{{result="{result}"}} ([\d.]+)', await response.text())
        if found is not None and float(found[1]) >= least:
            return float(found[1])
        await asyncio.sleep(0.02)
    raise AssertionError(f"there were never {least} {result} spans")


async def test_a_receiver_that_is_down_costs_spans_and_no_call(run_service, scripted, http, tmp_path):
    settings = config(scripted, "http://127.0.0.1:9", attempts=1, queue_size=16, batch_size=5)
    body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}
    with run_service(settings, tmp_path) as service:
        for _ in range(10):
            async with http.post(f"{service.url}/v1/chat/completions", json=body) as response:
                assert response.status == 200
        await counted(http, service, "failed", 5)
        assert service.log.count("traces are not delivered") == 1
        assert service.stop() == 0


async def test_a_batch_is_sent_again_and_what_waits_at_the_end_is_sent(run_service, scripted, receiver, http, tmp_path):
    body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}
    receiver.answers.append(503)
    receiver.rejects = 1
    with run_service(config(scripted, receiver.url, flush_interval_s=0.2), tmp_path) as service:
        before = len(receiver.spans)
        for exported in (5, 10):
            async with http.post(f"{service.url}/v1/chat/completions", json=body) as response:
                assert response.status == 200
            if exported == 5:
                assert await counted(http, service, "exported", exported) == exported
                assert await counted(http, service, "rejected", 1) == 1
                assert "traces are delivered again" in service.log
        assert service.stop() == 0
    receiver.rejects = 0
    assert len(receiver.spans) == before + 10


async def test_a_batch_waits_until_it_is_full(run_service, scripted, receiver, http, tmp_path):
    """Ten calls of five spans each: three batches of 16 while calls come, and the rest at the end."""
    body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}
    with run_service(config(scripted, receiver.url, flush_interval_s=300, batch_size=16), tmp_path) as service:
        spans, batches = len(receiver.spans), len(receiver.headers)
        for _ in range(10):
            async with http.post(f"{service.url}/v1/chat/completions", json=body) as response:
                assert response.status == 200
        assert await counted(http, service, "exported", 48) == 48
        assert (len(receiver.spans) - spans, len(receiver.headers) - batches) == (48, 3)
        assert service.stop() == 0
    assert (len(receiver.spans) - spans, len(receiver.headers) - batches) == (50, 4)


async def test_without_tracing_the_callers_context_is_passed_on_where_it_is_sound(
    run_service, scripted, receiver, http, tmp_path
):
    settings = config(scripted, receiver.url)
    del settings["tracing"]
    sound = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    body = {"model": "auto", "messages": [{"role": "user", "content": PROMPT}]}
    with run_service(settings, tmp_path) as service:
        for given, passed in ((sound, sound), ("00-0-0-01", None), (sound.upper(), None), (None, None)):
            headers = {} if given is None else {"traceparent": given, "tracestate": "a=b"}
            async with http.post(f"{service.url}/v1/chat/completions", json=body, headers=headers) as response:
                assert response.status == 200
            sent = scripted.headers["good"][-1]
            assert sent.get("traceparent") == passed
            assert sent.get("tracestate") == (None if passed is None else "a=b")
