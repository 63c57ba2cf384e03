"""Endpoints that fail: what the caller is told, what is recorded, and what must never be seen anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
from collections import Counter

import openai
import orjson
import pytest
from aiohttp import web

UPSTREAM_KEY = "sk-canary-upstream-0451"
OUR_KEY = "sk-canary-caller-0451"
CANARY = "canary-prompt-0451"
SECRETS = (UPSTREAM_KEY, OUR_KEY, CANARY)
MESSAGES = [{"role": "user", "content": f"tell me about {CANARY}"}]
MAX_RESPONSE_BYTES = 100_000
DEEP = b"[" * 400 + b"]" * 400


def _event(content, **more):
    chunk = {"id": "up", "object": "chat.completion.chunk", "model": "m", **more}
    chunk["choices"] = [{"index": 0, "delta": {"content": content}, "finish_reason": None}]
    return b"data: " + orjson.dumps(chunk) + b"\n\n"


ANSWER = {"id": "up", "object": "chat.completion", "model": "m", "choices": [], "usage": {"prompt_tokens": 3}}
DONE = b"data: [DONE]\n\n"
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
STREAMS = {  # what odd endpoints send when asked to stream, one write each
    "error-event": (_event("a"), b'data: {"error":{"message":"%s"}}\n\n' % CANARY.encode()),
    "no-done": (_event("a"), _event("b")),
    "huge-event": (_event("a"), b"data: " + b"x" * (1 << 20)),
    "deep-event": (_event("a"), b'data: {"choices":[],"x":%s}\n\n' % DEEP),
    "not-an-object": (_event("a"), b"data: 7\n\n"),
    "half-and-half": (_event("a") + b"data: {bad\n\n",),
    "odd-but-sound": (
        b": a comment\r\n\r\nevent: message\r\nid: 1\r\n",
        _event("a", error=None, usage=None)[:20],
        _event("a", error=None, usage=None)[20:].replace(b"\n", b"\r\n"),
        _event("b", usage={"prompt_tokens": 3, "completion_tokens": 1}) + USAGE + DONE,
    ),
}
BODIES = {  # what they answer: status, headers, body in pieces
    "redirect": (302, {"Location": "/target"}, [b""]),
    "oversized": (200, {}, [b'{"x":"', b"x" * MAX_RESPONSE_BYTES, b'"}']),
    "oversized-length": (200, {"Content-Length": "100010"}, [b'{"x":"', b"x" * 100_002, b'"}']),
    "a-list": (200, {}, [b"[1]"]),
    "deep": (200, {}, [b'{"x":' + DEEP + b"}"]),
    "error-200": (200, {}, [b'{"error":{"message":"no"}}']),
    "zipped": (200, {"Content-Encoding": "gzip"}, [b"\x1f\x8b\x08\x00"]),
    "no-stream": (200, {}, [orjson.dumps(ANSWER)]),
    "too-long": (
        400,
        {},
        [
            b'{"error":{"message":"too many tokens","type":null,"param":"messages",',
            b'"code":"context_length_exceeded","more":[1]}}',
        ],
    ),
    "bad-key": (401, {}, [b'{"error":{"message":"Incorrect key: %s"}}' % UPSTREAM_KEY.encode()]),
    "busy": (429, {"Retry-After": "17"}, [b'{"error":{"message":"%s"}}' % CANARY.encode()]),
    "not-json-error": (422, {}, [b"<html>"]),
    "error-is-text": (400, {}, [b'{"error":"just words"}']),
    "broken": (503, {"Retry-After": "17"}, [b"%s %s" % (UPSTREAM_KEY.encode(), CANARY.encode())]),
}


class Odd:
    """Endpoints that each do one odd thing; counts what they must not be asked."""

    def __init__(self) -> None:
        self.redirected = 0
        self.app = web.Application()
        self.app.router.add_post("/{name}/v1/{tail:.*}", self.answer)
        self.app.router.add_route("*", "/target", self.target)

    async def target(self, request):
        del request
        self.redirected += 1
        return web.json_response(ANSWER)

    async def answer(self, request):
        name = request.match_info["name"]
        await request.read()
        if name in STREAMS:
            status, headers, pieces = 200, {"Content-Type": "text/event-stream; charset=utf-8"}, STREAMS[name]
        else:
            status, headers, pieces = BODIES[name]
        response = web.StreamResponse(status=status, headers={"Content-Type": "application/json"} | headers)
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for piece in pieces:
                await response.write(piece)
                await asyncio.sleep(0.005)  # so that pieces travel alone
            await response.write_eof()
        return response


@pytest.fixture(scope="module")
def odd(serve_in_thread):
    odd = Odd()
    with serve_in_thread(odd.app) as url:
        odd.url = url
        yield odd


@pytest.fixture(scope="module")
def service(run_service, trial, odd, tmp_path_factory):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        closed_port = unused.getsockname()[1]
    names = ("good", "f500", "f429", "f400", "f401", "hang", "stall", "malformed", "reset")
    models = [trial.model(name, api_key=UPSTREAM_KEY) for name in names]
    models += [{"name": name, "endpoint": f"{odd.url}/{name}/v1", "timeout_s": 20} for name in (*STREAMS, *BODIES)]
    models += [{"name": "refused", "endpoint": f"http://127.0.0.1:{closed_port}/v1", "api_key": UPSTREAM_KEY}]
    config = {
        "server": {"max_response_bytes": MAX_RESPONSE_BYTES},
        "auth": {"keys": [{"key": OUR_KEY, "user": "ada"}]},
        "log": {"flush_interval_s": 0.1},
        "models": models,
        "pools": [{"name": "auto", "models": ["good", "f500"]}],
        "failures": {"retries": {"max_attempts": 1}},  # what becomes of one attempt
    }
    with run_service(config, tmp_path_factory.mktemp("faults")) as service:
        yield service


@pytest.fixture(scope="module")
def asked():
    """How often each model was asked."""
    return Counter()


@pytest.fixture
def ask(service, http, asked):
    """Post a chat: (status, headers, raw body), none of which may hold a secret."""

    async def ask(model, **more):
        asked[model] += 1
        body = {"model": model, "messages": MESSAGES, **more}
        headers = {"Authorization": f"Bearer {OUR_KEY}"}
        async with http.post(f"{service.url}/v1/chat/completions", json=body, headers=headers) as response:
            raw = await response.read()
        assert not any(secret.encode() in raw for secret in SECRETS)
        assert not any(secret in str(response.headers) for secret in SECRETS)
        return response.status, response.headers, raw

    return ask


@pytest.fixture
def last_outcome(service, asked, wait_until):
    """The only outcome of a model's last decision."""

    async def last_outcome(model):
        def decisions():
            return [e for e in service.events("decision") if e["payload"]["chosen"] == model]

        await wait_until(lambda: len(decisions()) == asked[model])
        return await service.outcome(decisions()[-1]["decision_id"])

    return last_outcome


def checked_error(raw):
    error = orjson.loads(raw)["error"]
    assert set(error) >= {"message", "type", "param", "code"}
    assert all(isinstance(error[name], str) and error[name] for name in ("message", "type", "code"))
    return error


# model, status and code for the caller; status, status of the answer and error in the outcome
FAILURES = [
    ("f500", 502, "upstream_error", "error", 500, "upstream_error"),
    ("f401", 502, "upstream_error", "error", 401, "upstream_error"),
    ("f429", 429, "upstream_rate_limited", "error", 429, "upstream_error"),
    ("f400", 400, "fault", "error", 400, "upstream_refused"),
    ("hang", 504, "upstream_timeout", "timeout", None, "upstream_timeout"),
    ("refused", 502, "upstream_unreachable", "error", None, "upstream_unreachable"),
    ("redirect", 502, "upstream_error", "error", 302, "upstream_error"),
    ("bad-key", 502, "upstream_error", "error", 401, "upstream_error"),
    ("too-long", 400, "context_length_exceeded", "error", 400, "upstream_refused"),
    ("not-json-error", 422, "upstream_refused", "error", 422, "upstream_refused"),
    ("error-is-text", 400, "upstream_refused", "error", 400, "upstream_refused"),
]
ONLY_WHOLE = [
    (
        "busy",
        429,
        "upstream_rate_limited",
        "error",
        429,
        "upstream_error",
    ),  # these two ask for rest, and get it from the next call on
    ("broken", 502, "upstream_error", "error", 503, "upstream_error"),
    ("malformed", 502, "upstream_malformed", "error", 200, "upstream_malformed"),
    ("stall", 504, "upstream_timeout", "timeout", None, "upstream_timeout"),
    ("reset", 502, "upstream_unreachable", "error", None, "upstream_unreachable"),
    ("oversized", 502, "upstream_malformed", "error", 200, "upstream_malformed"),
    ("oversized-length", 502, "upstream_malformed", "error", 200, "upstream_malformed"),
    ("a-list", 502, "upstream_malformed", "error", 200, "upstream_malformed"),
    ("deep", 502, "upstream_malformed", "error", 200, "upstream_malformed"),
    ("error-200", 502, "upstream_malformed", "error", 200, "upstream_malformed"),
    ("zipped", 502, "upstream_malformed", "error", 200, "upstream_malformed"),
]
ONLY_STREAMED = [("no-stream", 502, "upstream_malformed", "error", 200, "upstream_malformed")]


@pytest.mark.parametrize(
    ("stream", "model", "status", "code", "outcome_status", "http_status", "error"),
    [(False, *row) for row in FAILURES + ONLY_WHOLE] + [(True, *row) for row in FAILURES + ONLY_STREAMED],
)
async def test_a_failure_is_told_in_one_shape_and_recorded_once(  # noqa: PLR0917 - a row's columns
    ask, last_outcome, stream, model, status, code, outcome_status, http_status, error
):
    """Before anything was passed on, a stream fails like a call that is answered in one piece."""
    told, headers, raw = await ask(model, stream=stream)
    assert (told, checked_error(raw)["code"]) == (status, code)
    assert headers["Content-Type"].startswith("application/json")
    assert headers["x-pointsman-decision-id"].startswith("pm-")
    outcome = await last_outcome(model)
    assert (outcome["status"], outcome["http_status"], outcome["error"]) == (outcome_status, http_status, error)
    assert (outcome["stream"], outcome["output_tokens"], outcome["cost_usd"]) == (stream, None, None)
    assert outcome["latency_s"] > 0


async def test_a_refusal_is_passed_on_with_all_the_endpoint_said(ask):
    """Also when it comes in pieces; only what is no string is put right."""
    _, _, raw = await ask("too-long")
    assert orjson.loads(raw)["error"] == {
        "message": "too many tokens",
        "type": "invalid_request_error",
        "param": "messages",
        "code": "context_length_exceeded",
        "more": [1],
    }
    _, _, raw = await ask("error-is-text")
    assert checked_error(raw)["message"] == "just words"


async def test_retry_after_is_passed_on(ask):
    assert (await ask("busy"))[1]["Retry-After"] == "17"
    assert (await ask("f429"))[1]["Retry-After"] == "1"
    assert "Retry-After" not in (await ask("broken"))[1]


async def test_where_models_run_is_no_callers_matter(ask, odd):
    for model in ("refused", "redirect", "hang"):
        _, _, raw = await ask(model)
        assert b"127.0.0.1" not in raw
    assert odd.redirected == 0


@pytest.mark.parametrize(
    ("model", "status", "error"),
    [
        ("stall", "timeout", "upstream_timeout"),
        ("malformed", "error", "upstream_malformed"),
        ("error-event", "error", "upstream_malformed"),
        ("no-done", "error", "upstream_disconnected"),
        ("huge-event", "error", "upstream_malformed"),
        ("deep-event", "error", "upstream_malformed"),
        ("not-an-object", "error", "upstream_malformed"),
        ("half-and-half", "error", "upstream_malformed"),
    ],
)
async def test_a_stream_that_breaks_off_ends_in_an_error_event(ask, last_outcome, model, status, error):
    """What came before is passed on, and counted where the endpoint gave no usage."""
    told, headers, raw = await ask(model, stream=True)
    events = raw.decode().split("\n\n")
    assert (told, headers["Content-Type"].split(";")[0], events[-1]) == (200, "text/event-stream", "")
    assert orjson.loads(events[0].removeprefix("data: "))["id"] == headers["x-pointsman-decision-id"]
    checked_error(events[-2].removeprefix("data: "))
    outcome = await last_outcome(model)
    assert (outcome["status"], outcome["error"]) == (status, error)
    assert (outcome["stream"], outcome["tokens_estimated"]) == (True, True)
    assert outcome["output_tokens"] == sum('"choices":[{' in event for event in events[:-2]) > 0
    assert outcome["time_to_first_token_s"] > 0


async def test_a_stream_whose_connection_is_reset_ends_in_an_error_event(ask, last_outcome):
    """A reset may take along what was received and not yet read; what is passed on and what is counted agree."""
    told, _, raw = await ask("reset", stream=True)
    *events, last, rest = raw.decode().split("\n\n") if told == 200 else (raw.decode(), "")
    assert (told, rest) in ((200, ""), (502, ""))  # 502: nothing was left to pass on
    code = checked_error(last.removeprefix("data: "))["code"]
    outcome = await last_outcome("reset")
    assert (outcome["status"], outcome["error"], outcome["http_status"]) == ("error", code, None)
    assert (outcome["output_tokens"] or 0, outcome["tokens_estimated"]) == (len(events), bool(events))


async def test_the_client_library_sees_an_error_in_a_stream(service):
    async with openai.AsyncOpenAI(base_url=f"{service.url}/v1", api_key=OUR_KEY, max_retries=0) as client:
        stream = await client.chat.completions.create(model="stall", messages=MESSAGES, stream=True)
        with pytest.raises(openai.APIError, match="no complete answer"):
            [chunk async for chunk in stream]


async def test_a_stream_may_be_odd_and_still_be_sound(ask, last_outcome):
    """Comments, carriage returns, events in pieces, `"error": null`, usage on the way: all of it is the protocol."""
    told, headers, raw = await ask("odd-but-sound", stream=True)
    *events, done, rest = raw.split(b"\n\n")
    assert (told, done, rest) == (200, b"data: [DONE]", b"")
    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["a", "b"]
    assert not any("usage" in chunk for chunk in chunks)
    assert {(chunk["id"], chunk["model"]) for chunk in chunks} == {
        (headers["x-pointsman-decision-id"], "odd-but-sound")
    }
    outcome = await last_outcome("odd-but-sound")
    assert (outcome["status"], outcome["output_tokens"], outcome["tokens_estimated"]) == ("ok", 2, False)


async def test_a_request_that_is_no_http_leaves_no_key_in_the_log(service):
    host, _, port = service.url.removeprefix("http://").partition(":")
    for junk in (
        f"GET / HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {OUR_KEY}\0\r\n\r\n",
        f"{CANARY} {OUR_KEY}\r\n\r\n",
        f"POST /reward HTTP/1.1\r\nHost: x\r\nContent-Length: {CANARY}\r\n\r\n",
    ):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(junk.encode())
        async with asyncio.timeout(10):
            assert (await reader.read()).startswith(b"HTTP/1.0 400")
        writer.close()
    assert "cannot be parsed" in service.log


async def test_after_all_this_no_decision_has_other_than_one_outcome(service, wait_until):
    decisions = [event["decision_id"] for event in service.events("decision")]
    await wait_until(lambda: len(service.events("outcome")) >= len(decisions))
    assert sorted(decisions) == sorted(event["decision_id"] for event in service.events("outcome"))


async def test_after_all_this_no_secret_is_in_any_store_or_log(service, wait_until):
    """Neither prompts nor keys, nor digests of keys."""
    last_seq = service.events()[-1]["seq"]
    await wait_until((service.data_dir / "log.duckdb").exists)
    assert service.stop() == 0
    found = [path for path in (*service.data_dir.iterdir(), service.log_path) if path.is_file()]
    assert {"router.sqlite", "log.duckdb", "service.log"} <= {path.name for path in found}
    digests = [hashlib.sha256(key.encode()) for key in (UPSTREAM_KEY, OUR_KEY)]
    needles = [secret.encode() for secret in SECRETS] + [d.digest() for d in digests]
    for path in found:
        content = path.read_bytes()
        assert not any(needle in content for needle in needles), path
    assert last_seq > 0
    assert "Traceback" not in service.log
