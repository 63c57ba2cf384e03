"""The soak's upstream: answers and streams of no latency, one call in fifty fails, and what is to be refused is.

python -m benchmarks.soak_upstream

It speaks as much HTTP as it needs: it shares the cores with what is measured.
"""

from __future__ import annotations

import asyncio
import itertools
import re
from typing import cast

import orjson
import uvloop

from benchmarks.servers import ANSWER

__all__ = ["FAILS_ONE_IN", "REFUSED"]

REFUSED = "what no upstream takes"
FAILS_ONE_IN = 50
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CHUNKS = 6


def _response(status: bytes, body: bytes, kind: bytes = b"application/json") -> bytes:
    head = b"HTTP/1.1 %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n"
    return head % (status, kind, len(body)) + body


def _stream() -> bytes:
    common = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m"}
    chunks = [{"choices": [{"index": 0, "delta": {"content": "All aboard. "}}]} for _ in range(_CHUNKS)]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    chunks.append({"choices": [], "usage": orjson.loads(ANSWER)["usage"]})
    events = b"".join(b"data: %s\n\n" % orjson.dumps(common | chunk) for chunk in chunks)
    return _response(b"200 OK", events + b"data: [DONE]\n\n", b"text/event-stream")


def _error(status: bytes, kind: str) -> bytes:
    return _response(status, orjson.dumps({"error": {"message": kind, "type": kind, "param": None, "code": kind}}))


_GOOD, _STREAM = _response(b"200 OK", ANSWER), _stream()
_FAILED, _BAD = _error(b"500 Internal Server Error", "server_error"), _error(b"400 Bad Request", "bad_request")
_NUMBERS = itertools.count(1)


class _Caller(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        length = _LENGTH.search(self._buffer[:end])
        if len(self._buffer) < end + 4 + (0 if length is None else int(length[1])):
            return
        body, self._buffer = self._buffer[end + 4 :], b""
        if REFUSED.encode() in body:
            answer = _BAD
        elif next(_NUMBERS) % FAILS_ONE_IN == 0:
            answer = _FAILED
        else:
            answer = _STREAM if b'"stream":true' in body or b'"stream": true' in body else _GOOD
        self._transport.write(answer)


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(_Caller, "127.0.0.1", 0, backlog=1024)
    print(f"listening at http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
