"""An upstream that takes its time and next to no processor: the same answer to every call after a fixed wait.

python -m benchmarks.slow_upstream [--latency-ms 50] [--chunks 50] [--gap-ms 10]

Every answer carries, as `upstream_ms`, how long it took by this process's own clock. A call with `"stream": true` gets,
after the same wait, so many chunks, that far apart, each in a packet of its own. GET answers 200 at once. POST
/latency/MS sets another wait for calls from then on, so that gateways in front of it need not be started anew.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from dataclasses import dataclass
from typing import cast

import orjson
import uvloop

from benchmarks.servers import ANSWER

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_STREAM = re.compile(rb'"stream": *true')
_EMPTY = b'{"object":"list","data":[]}'
_EVENT = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": "m"}


@dataclass(slots=True)
class _Manner:
    latency_s: float
    chunks: int
    gap_s: float


def _event(delta: dict[str, str], finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    data = b"data: " + orjson.dumps(_EVENT | {"choices": [choice]} | more) + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


_USAGE = {"prompt_tokens": 60, "completion_tokens": 120, "total_tokens": 180}
_FIRST = _event({"role": "assistant", "content": "All"})
_NEXT = _event({"content": " aboard."})
_LAST = _event({}, "stop", usage=_USAGE) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"


class _Caller(asyncio.Protocol):
    def __init__(self, manner: _Manner) -> None:
        self._manner, self._buffer = manner, b""

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
        method, path, _ = self._buffer.split(b" ", 2)
        streamed = _STREAM.search(self._buffer, end) is not None
        self._buffer = b""
        if method == b"GET":
            self._json(_EMPTY)
        elif path.startswith(b"/latency/"):
            self._manner.latency_s = float(path.removeprefix(b"/latency/")) / 1e3
            self._json(_EMPTY)
        else:
            then = self._stream if streamed else self._answer
            asyncio.get_running_loop().call_later(self._manner.latency_s, then, time.perf_counter())

    def _answer(self, begun: float) -> None:
        took_ms = (time.perf_counter() - begun) * 1e3
        self._json(b'{"upstream_ms":%.3f,' % took_ms + ANSWER[1:])

    def _json(self, body: bytes) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._send(head + body)

    def _stream(self, _begun: float) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        self._chunk(1, head + _FIRST)

    def _chunk(self, number: int, data: bytes) -> None:
        """The `number`-th, then those after it; the last carries the usage and the end."""
        if self._send(data) and number < self._manner.chunks:
            following = _LAST if number + 1 == self._manner.chunks else _NEXT
            asyncio.get_running_loop().call_later(self._manner.gap_s, self._chunk, number + 1, following)

    def _send(self, data: bytes) -> bool:
        if self._transport.is_closing():
            return False
        self._transport.write(data)
        return True


async def _main(manner: _Manner) -> None:
    orjson.loads(ANSWER)  # an object, into which a field goes
    server = await asyncio.get_running_loop().create_server(lambda: _Caller(manner), "127.0.0.1", 0, backlog=1024)
    print(f"listening at http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    parser.add_argument("--chunks", type=int, default=50, help="of a stream, two at least")
    parser.add_argument("--gap-ms", type=float, default=10.0)
    options = parser.parse_args()
    uvloop.run(_main(_Manner(options.latency_ms / 1e3, max(2, options.chunks), options.gap_ms / 1e3)))
