"""A server that speaks the OpenAI protocol for a whole pool of models, to try a router on.

Owns sockets, waiting and counting. What is answered comes from a `Source`, what goes wrong from `Conditions`,
how it looks on the wire from `upstream_wire`. Never knows who routes to it. Sampling parameters, `n` and
token limits of a request are accepted and ignored: an answer is as it was recorded or drawn.
"""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any, Final

import numpy as np
import orjson
from aiohttp import web

from bandit.errors import InvalidInput, UnknownArm
from evaluation.answers import Answer, Source
from evaluation.faults import Conditions, Fault, LatencyShift
from evaluation.upstream_wire import (
    Kind,
    Reply,
    embeddings_body,
    error_body,
    parse_call,
    reply_body,
    reply_events,
)

__all__ = ["CATEGORY_HEADER", "create_app", "serve"]

CATEGORY_HEADER: Final = "x-pointsman-category"
TIME_TO_FIRST_TOKEN_SHARE: Final = 0.3
MAX_BODY_BYTES: Final = 16 * 2**20
RECENT_REQUESTS: Final = 100
RECENT_BODY_BYTES: Final = 256 * 2**10
HANG_LIMIT_S: Final = 3600.0
"""How long a call that never answers is held before the server breaks the connection itself."""
RETRY_AFTER_S: Final = 1
SHUTDOWN_TIMEOUT_S: Final = 0.5
BACKLOG: Final = 1024
_SECRET_HEADERS: Final = frozenset({"authorization", "api-key", "x-api-key", "proxy-authorization", "cookie"})
_RST_ON_CLOSE: Final = struct.pack("ii", 1, 0)
_JSON: Final = "application/json"
_REFUSALS: Final[Mapping[str | None, tuple[str, str]]] = {  # messages and codes of OpenAI's API
    "context_window": ("This model's maximum context length is 1 token.", "context_length_exceeded"),
    "content_policy": ("The request was refused by the content filter.", "content_filter"),
}


def create_app(
    source: Source,
    *,
    faults: Mapping[str, Fault] | None = None,
    shifts: Sequence[LatencyShift] = (),
    seed: int = 0,
    time_scale: float = 1.0,
    clock: Callable[[], float] = time.monotonic,
    wall_clock: Callable[[], float] = time.time,
) -> web.Application:
    """The application. Times of shifts and runs count from its start by `clock`.

    Latencies are multiplied by `time_scale` (≥ 0). Each model draws from streams of its own made from `seed`,
    so what its n-th call yields does not depend on the traffic of others. Raises InvalidInput.
    """
    if not 0.0 <= time_scale <= 1e6:
        raise InvalidInput("time_scale", f"must be between 0 and 1e6, not {time_scale!r}")
    server = _Upstreams(
        source,
        Conditions(source, faults, shifts),
        seed=seed,
        time_scale=time_scale,
        clock=clock,
        wall_clock=wall_clock,
    )
    app = web.Application(client_max_size=MAX_BODY_BYTES)
    app.on_startup.append(server.start)
    app.add_routes(
        [
            web.post("/v1/chat/completions", server.chat),
            web.post("/v1/completions", server.text),
            web.post("/v1/embeddings", server.embeddings),
            web.get("/v1/models", server.models),
            web.get("/healthz", server.healthz),
            web.get("/control", server.show),
            web.post("/control", server.control),
        ]
    )
    return app


@asynccontextmanager
async def serve(app: web.Application, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve `app` while the context lasts; yields its base URL, with the port in use where `port` is 0."""
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()
        shown = f"[{host}]" if ":" in host else host
        yield f"http://{shown}:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@dataclass(slots=True)
class _Tally:
    """Calls of one model; those started and in none of the others are under way."""

    started: int = 0
    finished: int = 0
    failed: int = 0
    cancelled: int = 0


@dataclass(slots=True)
class _Stream:
    """The chance of one model: answers and faults apart, so that a fault changes no answer."""

    answers: np.random.Generator
    faults: np.random.Generator


class _Upstreams:
    def __init__(
        self,
        source: Source,
        conditions: Conditions,
        *,
        seed: int,
        time_scale: float,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
    ) -> None:
        self._source, self._conditions, self._time_scale = source, conditions, time_scale
        self._clock, self._wall_clock = clock, wall_clock
        self._started_at_s = clock()
        self._ids = random.Random(seed)
        self._tallies = {model: _Tally() for model in source.models}
        self._streams = {
            model: _Stream(np.random.default_rng([seed, i, 0]), np.random.default_rng([seed, i, 1]))
            for i, model in enumerate(source.models)
        }
        self._recent: deque[tuple[str, Mapping[str, str], bytes]] = deque(maxlen=RECENT_REQUESTS)

    async def start(self, app: web.Application) -> None:
        del app
        self._started_at_s = self._clock()

    async def chat(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, "chat")

    async def text(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, "text")

    async def embeddings(self, request: web.Request) -> web.StreamResponse:
        return await self._serve(request, "embeddings")

    async def models(self, request: web.Request) -> web.Response:
        del request
        created = int(self._wall_clock())
        data = [
            {"id": name, "object": "model", "created": created, "owned_by": "trial"} for name in self._source.models
        ]
        return _json(orjson.dumps({"object": "list", "data": data}))

    async def healthz(self, request: web.Request) -> web.Response:
        del request
        return _json(b'{"status":"ok"}')

    async def show(self, request: web.Request) -> web.Response:
        """What is in force, the tallies, and the last requests (`?last=N`), with keys redacted."""
        last = request.query.get("last", str(RECENT_REQUESTS))
        if not last.isdecimal() or int(last) > RECENT_REQUESTS:
            message = f"must be a whole number from 0 to {RECENT_REQUESTS}"
            return _error(400, InvalidInput("last", message), "invalid_request_error", "invalid_value")
        recent = list(self._recent)[len(self._recent) - min(int(last), len(self._recent)) :]
        return _json(
            orjson.dumps(
                {
                    **self._conditions.to_json(self._elapsed_s()),
                    "elapsed_s": self._elapsed_s(),
                    "models": {model: asdict(tally) for model, tally in self._tallies.items()},
                    "requests": [_shown(*received) for received in recent],
                }
            )
        )

    async def control(self, request: web.Request) -> web.Response:
        """Change what is in force; answers with what then is."""
        try:
            self._conditions.control(await request.read())
        except InvalidInput as error:
            return _error(400, error, "invalid_request_error", "invalid_value")
        return _json(orjson.dumps(self._conditions.to_json(self._elapsed_s())))

    async def _serve(self, request: web.Request, kind: Kind) -> web.StreamResponse:
        arrived_s = asyncio.get_running_loop().time()
        body = await request.read()
        kept = body if len(body) <= RECENT_BODY_BYTES else orjson.dumps({"bytes": len(body)})
        self._recent.append((request.path, request.headers, kept))
        try:
            call = parse_call(kind, body, request.headers.get(CATEGORY_HEADER))
        except InvalidInput as error:
            return _error(400, error, "invalid_request_error", "invalid_value")
        model = call.model
        stream = self._streams.get(model)
        if stream is None:
            return _unknown_model(UnknownArm(model, self._source.models))
        try:
            answer = self._source.answer(model, call.prompt_text, call.category, stream.answers, self._elapsed_s())
        except UnknownArm as error:
            return _unknown_model(error)
        prefix = "cmpl" if kind == "text" else "chatcmpl"
        reply = Reply(call, answer, f"{prefix}-{self._ids.getrandbits(116):029x}", int(self._wall_clock()))
        fault = self._conditions.draw_fault(model, stream.faults)
        tally = self._tallies[model]
        tally.started += 1
        try:
            response = await self._reply(request, reply, fault, arrived_s)
        except _Failed as failed:
            tally.failed += 1
            return failed.response
        except (asyncio.CancelledError, ConnectionError):
            tally.cancelled += 1
            raise
        tally.finished += 1
        return response

    async def _reply(
        self, request: web.Request, reply: Reply, fault: Fault | None, arrived_s: float
    ) -> web.StreamResponse:
        kind = None if fault is None else fault.kind
        if fault is not None and kind == "status":
            raise _Failed(_fault_response(fault))
        if kind in _REFUSALS:
            raise _Failed(_refusal(*_REFUSALS[kind]))
        if kind == "timeout":
            raise await _hang(request)
        first_s, last_s = self._times(reply.call.model, reply.answer)
        if fault is not None and kind == "slow":
            first_s, last_s = first_s + fault.slow_by_s, last_s + fault.slow_by_s
        if reply.call.stream:
            return await _send_stream(request, reply_events(reply, first_s, last_s), kind, arrived_s)
        await _sleep_until(arrived_s + last_s)
        body = embeddings_body(reply) if reply.call.kind == "embeddings" else reply_body(reply)
        return await _send_whole(request, body, kind)

    def _times(self, model: str, answer: Answer) -> tuple[float, float]:
        """Seconds from a request's arrival to its first token and to its end."""
        scale = self._time_scale * self._conditions.latency_factor(model, self._elapsed_s())
        first_s = answer.time_to_first_token_s
        if first_s is None:
            first_s = TIME_TO_FIRST_TOKEN_SHARE * answer.latency_s
        return min(first_s, answer.latency_s) * scale, answer.latency_s * scale

    def _elapsed_s(self) -> float:
        return self._clock() - self._started_at_s


class _Failed(Exception):
    """Not an error of ours: a fault that was asked for has been carried out, with this response."""

    def __init__(self, response: web.StreamResponse) -> None:
        super().__init__()
        self.response = response


async def _send_whole(request: web.Request, body: bytes, fault: str | None) -> web.Response:
    if fault == "malformed":
        raise _Failed(_json(body[: len(body) * 2 // 3]))
    if fault == "reset":
        raise _reset(request, web.Response())
    if fault == "stall":
        response = web.StreamResponse(headers={"Content-Type": _JSON, "Content-Length": str(len(body))})
        await response.prepare(request)
        await response.write(body[: len(body) // 2])
        raise await _hang(request)
    return _json(body)


async def _send_stream(
    request: web.Request, events: Sequence[tuple[float, bytes]], fault: str | None, arrived_s: float
) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    # A fault strikes after half of the writes, but never before the first nor after the last.
    sound = max(1, len(events) // 2) if fault in ("stall", "malformed", "reset") else len(events) - 1
    for at_s, event in events[:sound]:
        await _sleep_until(arrived_s + at_s)
        if not response.prepared:
            await response.prepare(request)
        await response.write(event)
    at_s, event = events[min(sound, len(events) - 1)]
    await _sleep_until(arrived_s + at_s)
    if not response.prepared:
        await response.prepare(request)
    if fault == "stall":
        raise await _hang(request)
    if fault == "reset":
        raise _reset(request, response)
    if fault == "malformed":
        await response.write_eof(event[: len(event) // 2] + b"\n\n")
        raise _Failed(response)
    await response.write_eof(event)
    return response


async def _sleep_until(at_s: float) -> None:
    left_s = at_s - asyncio.get_running_loop().time()
    if left_s > 0:
        await asyncio.sleep(left_s)


async def _hang(request: web.Request) -> _Failed:
    await asyncio.sleep(HANG_LIMIT_S)
    return _reset(request, web.Response())


def _reset(request: web.Request, response: web.StreamResponse) -> _Failed:
    """Break the connection so that the client's side sees a reset, not an orderly end."""
    transport = request.transport
    if transport is not None:
        connection = transport.get_extra_info("socket")
        if connection is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        transport.abort()
    return _Failed(response)


def _fault_response(fault: Fault) -> web.Response:
    kind, code = "server_error", "internal_error"
    if fault.status < 500:
        kind, code = "invalid_request_error", "fault"
    headers = {}
    if fault.status == 429:
        kind, code = "rate_limit_error", "rate_limit_exceeded"
        headers["Retry-After"] = str(RETRY_AFTER_S)
    body = error_body(f"a fault that was asked for: status {fault.status}", kind, code)
    return web.Response(status=fault.status, body=body, headers={"Content-Type": _JSON, **headers})


def _refusal(message: str, code: str) -> web.Response:
    body = error_body(message, "invalid_request_error", code, "messages")
    return web.Response(status=400, body=body, headers={"Content-Type": _JSON})


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": _JSON})


def _error(status: int, error: InvalidInput, kind: str, code: str) -> web.Response:
    body = error_body(str(error), kind, code, error.field)
    return web.Response(status=status, body=body, headers={"Content-Type": _JSON})


def _unknown_model(error: UnknownArm) -> web.Response:
    return _error(404, InvalidInput("model", str(error)), "invalid_request_error", "model_not_found")


def _shown(path: str, headers: Mapping[str, str], body: bytes) -> dict[str, Any]:
    shown: Any
    try:
        shown = orjson.loads(body)
    except orjson.JSONDecodeError:
        shown = body.decode(errors="replace")
    return {"path": path, "headers": _redacted(headers.items()), "body": shown}


def _redacted(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Headers by lower-case name; of a secret only its scheme and a digest, for tests to know it by."""
    shown = {}
    for name, value in headers:
        key = name.lower()
        if key in _SECRET_HEADERS:
            scheme, space, secret = value.rpartition(" ")
            shown[key] = f"{scheme}{space}[redacted sha256:{sha256(secret.encode()).hexdigest()[:12]}]"
        else:
            shown[key] = value
    return shown
