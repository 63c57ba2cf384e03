"""An endpoint whose every answer is another one, so that whatever is told twice was kept; a prompt's words steer it.

Served in a thread of the tests' own process. `asked[text]` counts the calls of a prompt; those with the word `hold`
are answered once `held` is set.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter

import orjson
from aiohttp import web

USAGE = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
COST_USD = 0.002  # at 1 and 10 USD per million
TOOL = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}


class Numbered:
    """Answers chat and embedding calls."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.gone: Counter[str] = Counter()
        self.held = threading.Event()
        self._number = 0
        self.app = web.Application()
        self.app.router.add_post("/{name}/v1/chat/completions", self.chat)
        self.app.router.add_post("/{name}/v1/embeddings", self.embeddings)

    def model(self, name, **more):
        """A model's entry in a configuration."""
        price = {"input_per_million": 1.0, "output_per_million": 10.0}
        return {"name": name, "endpoint": f"{self.url}/{name}/v1", "price": price} | more

    async def embeddings(self, request):
        asked = await request.json()
        self._number += 1
        self.asked[asked["input"]] += 1
        data = [{"object": "embedding", "index": 0, "embedding": [float(self._number)]}]
        usage = {"prompt_tokens": 1000, "total_tokens": 1000}
        return web.json_response({"object": "list", "data": data, "model": "m", "usage": usage})

    async def chat(self, request):
        asked = await request.json()
        prompt = asked["messages"][-1]["content"]
        self._number += 1
        self.asked[prompt] += 1
        words, text = prompt.split(), f"answer {self._number} of {request.match_info['name']}: ‘é’"
        try:
            while "hold" in words and not self.held.is_set():  # noqa: ASYNC110 - a test sets it from its own thread
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.gone[prompt] += 1
            raise
        if "fail" in words:
            return web.json_response({"error": {"message": "no", "type": "t", "code": "c"}}, status=500)
        message = {"role": "assistant", "content": None if "tool" in words else text}
        if "tool" in words:
            message["tool_calls"] = [TOOL]
        end = "length" if "cut" in words else "tool_calls" if "tool" in words else "stop"
        if asked.get("stream"):
            return await self._stream(request, message, end, breaks="break" in words)
        choice = {"index": 0, "message": message, "finish_reason": end}
        whole = {"id": "up", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
        return web.json_response(whole | {"usage": USAGE, "system_fingerprint": "fp"})

    async def _stream(self, request, message, end, *, breaks):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        deltas = [{"role": "assistant", "content": ""}]
        deltas += [{"content": piece} for piece in (message["content"] or "").partition(" ")]
        deltas += [{"tool_calls": [{"index": 0, **TOOL}]}] if "tool_calls" in message else []
        frame = {"id": "up", "object": "chat.completion.chunk", "created": 1, "model": "m"}
        for delta in deltas:
            await response.write(_event(frame, [{"index": 0, "delta": delta, "finish_reason": None}]))
        if breaks:
            await asyncio.sleep(0.3)  # a reset takes along what the other side has not read yet
            request.transport.abort()
            return response
        await response.write(_event(frame, [{"index": 0, "delta": {}, "finish_reason": end}]))
        await response.write(_event(frame | {"usage": USAGE}, []))
        with contextlib.suppress(ConnectionError):
            await response.write_eof(b"data: [DONE]\n\n")
        return response


def _event(frame, choices):
    return b"data: " + orjson.dumps(frame | {"choices": choices}) + b"\n\n"
