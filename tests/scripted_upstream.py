"""Endpoints that do what a test tells them, call by call: `plans[name]` is used up first, then `rest[name]` holds.

Served in a thread of the tests' own process, so that a test may look into it and change its mind.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time
from collections import defaultdict, deque

import orjson
from aiohttp import web

ERRORS = {
    "too-long": (400, {}, "context_length_exceeded"),
    "filtered": (400, {}, "content_filter"),
    "bad-request": (400, {}, "bad"),
    "unprocessable": (422, {}, "bad"),
    "busy": (429, {"Retry-After": "1"}, "busy"),
    "very-busy": (429, {"Retry-After": "17"}, "busy"),
}
ODD = {  # as some servers say it: the status, and a body without OpenAI's object
    "too-long-flat": (400, {"object": "error", "message": "maximum context length is 8 tokens", "code": 400}),
    "error-200": (200, {"error": "Unexpected endpoint or method. Returning 200 anyway"}),
}


def chunk(text, **more):
    """One event of a chat stream."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    body = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice], **more}
    return b"data: " + orjson.dumps(body) + b"\n\n"


class Scripted:
    """What is to happen, and what did: `arrived[name]` has the monotonic time of every call."""

    def __init__(self) -> None:
        self.plans: dict[str, deque[str]] = defaultdict(deque)
        self.rest: dict[str, str] = {}
        self.arrived: dict[str, list[float]] = defaultdict(list)
        self.gone: dict[str, int] = defaultdict(int)
        self.headers: dict[str, list[dict[str, str]]] = defaultdict(list)
        self.app = web.Application()
        self.app.router.add_post("/{name}/v1/{tail:.*}", self.answer)

    def model(self, name, **more):
        """A model's entry in a configuration."""
        price = {"input_per_million": 1.0, "output_per_million": 10.0}
        return {"name": name, "endpoint": f"{self.url}/{name}/v1", "price": price} | more

    def calls(self, name):
        """How often it was asked."""
        return len(self.arrived[name])

    async def answer(self, request):
        name = request.match_info["name"]
        self.arrived[name].append(time.monotonic())
        self.headers[name].append(dict(request.headers))
        asked = await request.json()
        plan = self.plans[name]
        what = plan.popleft() if plan else self.rest.get(name, "ok")
        try:
            return await self._act(request, what, stream=bool(asked.get("stream")))
        except (ConnectionError, asyncio.CancelledError):
            self.gone[name] += 1
            raise

    async def _act(self, request, what, *, stream):
        if what.isdigit() or what in ERRORS:
            status, headers, code = ERRORS.get(what) or (int(what), {}, "broken")
            error = {"message": f"status {status}", "type": "t", "param": None, "code": code}
            return web.json_response({"error": error}, status=status, headers=headers)
        if what in ODD:
            status, body = ODD[what]
            return web.json_response(body, status=status)
        if what == "hang":
            await asyncio.sleep(60)
        if what == "reset":
            return _reset(request)
        if what.startswith("slow-"):
            await asyncio.sleep(float(what.removeprefix("slow-")))
        if stream:
            return await self._stream(request, what)
        if what == "malformed":
            return web.Response(body=b'{"id": "up", "cho', content_type="application/json")
        message = {"role": "assistant", "content": f"from {request.match_info['name']}"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}
        return web.json_response(
            {"id": "up", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        )

    async def _stream(self, request, what):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        if what == "stall-early":  # its headers, and then nothing
            await asyncio.sleep(60)
        await response.write(chunk("one"))
        await asyncio.sleep(0.02)
        if what in ("stall", "endless"):
            while True:
                await asyncio.sleep(60 if what == "stall" else 0.02)
                await response.write(chunk("more"))
        if what == "reset-midway":
            await asyncio.sleep(0.3)  # a reset takes along what the other side has not read yet
            return _reset(request)
        if what == "malformed":
            await response.write(b'data: {"cho\n\n')
            return response
        await response.write(chunk("two", usage={"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}))
        with contextlib.suppress(ConnectionError):
            await response.write_eof(b"data: [DONE]\n\n")
        return response


def _reset(request):
    """Break the connection: the other side sees a reset, not an orderly end."""
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    request.transport.abort()
    return web.Response()
