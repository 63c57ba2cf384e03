"""An upstream that takes its time and next to no processor: the same answer to every call after a fixed wait.

python -m benchmarks.slow_upstream [--latency-ms 50]

Every answer carries, as `upstream_ms`, how long it took by this process's own clock.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import time
from typing import cast

import orjson
import uvloop

from benchmarks.servers import ANSWER

_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")


class _Caller(asyncio.Protocol):
    def __init__(self, latency_s: float) -> None:
        self._latency_s, self._buffer = latency_s, b""

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
        self._buffer = b""
        asyncio.get_running_loop().call_later(self._latency_s, self._answer, time.perf_counter())

    def _answer(self, begun: float) -> None:
        took_ms = (time.perf_counter() - begun) * 1e3
        body = b'{"upstream_ms":%.3f,' % took_ms + ANSWER[1:]
        head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)
        self._transport.write(head + body)


async def _main(latency_s: float) -> None:
    orjson.loads(ANSWER)  # an object, into which a field goes
    server = await asyncio.get_running_loop().create_server(lambda: _Caller(latency_s), "127.0.0.1", 0, backlog=1024)
    print(f"listening at http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-ms", type=float, default=50.0)
    uvloop.run(_main(parser.parse_args().latency_ms / 1e3))
