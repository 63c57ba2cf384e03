"""Calls that come when they come, whatever became of those before: one process, one key, at a stated rate.

    python -m benchmarks.open_loop URL --rate R --seconds S --at UNIX_TIME [--key K] [--settle 3] [--seed 0]
    python -m benchmarks.open_loop URL --connections N --seconds S      (instead: so many callers that never pause)

Arrivals are Poisson. A call is timed from the moment it was due, so a service that falls behind cannot slow its
callers down and look well (coordinated omission); how late this process itself was is told beside it. It speaks as
much HTTP as it needs, over connections kept alive, a new one where none is idle: it shares the cores with what it
measures. Without `--key` it sends `GET /healthz`, which costs the service nothing but its event loop's attention.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import numpy as np
import orjson
import uvloop

__all__ = ["quantiles_ms"]

_TICK_S = 0.001  # what timers of the loop can do
_LAST_S = 20.0  # for calls under way at the end
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_OVERHEAD = re.compile(rb"(?i)\r\nx-pointsman-overhead-ms: *([\d.]+)")
_UPSTREAM = re.compile(rb'"upstream_ms": *([\d.]+)')
_CODE = re.compile(rb'"code": *"([a-z_]+)"')
_QUESTION = {
    "model": "auto",
    "messages": [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Why do trains in the mountains run on rack rails, and since when? " * 3},
    ],
}


@dataclass(slots=True)
class _Call:
    due: float
    sent: float = 0.0
    answered: float = 0.0
    status: int = 0
    code: str = ""
    overhead_ms: float = float("nan")
    upstream_ms: float = 0.0


class _Connection(asyncio.Protocol):
    """One call at a time."""

    def __init__(self, load: _Load, call: _Call) -> None:
        self._load, self._call, self._buffer = load, call, b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write(self._load.request)

    def send(self, call: _Call) -> None:
        assert self._transport is not None  # noqa: S101 - it is idle
        self._call = call
        self._transport.write(self._load.request)

    def data_received(self, data: bytes) -> None:
        self._buffer = self._buffer + data if self._buffer else data
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self._buffer[:end]
        length = _LENGTH.search(head)
        if length is None or len(self._buffer) < end + 4 + int(length[1]):
            return
        call = self._call
        call.answered, call.status = time.perf_counter(), int(head[9:12])
        if call.status >= 400 and (code := _CODE.search(self._buffer, end)) is not None:
            call.code = code[1].decode()
        if call.status == 200 and (overhead := _OVERHEAD.search(head)) is not None:
            call.overhead_ms = float(overhead[1])
            if (upstream := _UPSTREAM.search(self._buffer, end)) is not None:
                call.upstream_ms = float(upstream[1])
        self._buffer = b""
        self._load.idle.append(self)
        self._load.ended()

    def connection_lost(self, _: Exception | None) -> None:
        if self in self._load.idle:
            self._load.idle.remove(self)
        elif not self._call.answered:
            self._load.ended()


class _Load:
    def __init__(self, url: str, key: str | None) -> None:
        parts = urlsplit(url)
        self._host, self._port = parts.hostname or "127.0.0.1", parts.port or 80
        body = orjson.dumps(_QUESTION)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {parts.netloc}\r\nAuthorization: Bearer {key}\r\n"
        head += f"Content-Type: application/json\r\nx-pointsman-category: facts\r\nContent-Length: {len(body)}\r\n\r\n"
        probe = f"GET /healthz HTTP/1.1\r\nHost: {parts.netloc}\r\n\r\n"
        self.request = probe.encode() if key is None else head.encode() + body
        self.idle: list[_Connection] = []
        self.calls: list[_Call] = []
        self.running = 0
        self.repeat_until = 0.0
        self._connecting: set[asyncio.Task[Any]] = set()

    async def at_rate(self, rate: float, seconds: float, rng: random.Random, begin: float) -> None:
        """Send when due, from `begin` on (of the performance counter)."""
        due = begin + rng.expovariate(rate)
        while due < begin + seconds:
            await asyncio.sleep(_TICK_S)
            now = time.perf_counter()
            while due <= now and due < begin + seconds:
                self._send(_Call(due))
                due += rng.expovariate(rate)
        await self._finish()

    async def by_callers(self, connections: int, seconds: float) -> None:
        """Send again whenever an answer has come."""
        now = time.perf_counter()
        self.repeat_until = now + seconds
        for _ in range(connections):
            self._send(_Call(now))
        await asyncio.sleep(seconds)
        await self._finish()

    def ended(self) -> None:
        self.running -= 1
        now = time.perf_counter()
        if now < self.repeat_until:
            self._send(_Call(now))

    def _send(self, call: _Call) -> None:
        self.running += 1
        self.calls.append(call)
        call.sent = time.perf_counter()
        if self.idle:
            self.idle.pop().send(call)
            return
        task = asyncio.ensure_future(self._connect(call))
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, call: _Call) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: _Connection(self, call), self._host, self._port)
        except OSError:
            self.running -= 1

    async def _finish(self) -> None:
        ends = time.perf_counter() + _LAST_S
        while self.running and time.perf_counter() < ends:  # noqa: ASYNC110 - at the end, once
            await asyncio.sleep(0.01)


def quantiles_ms(values_s: Sequence[float]) -> dict[str, float] | None:
    """p50, p95 and p99 in milliseconds; None of nothing."""
    values = [value for value in values_s if value == value]  # noqa: PLR0124 - not those that are not a number
    if not values:
        return None
    found = np.quantile(values, (0.5, 0.95, 0.99)) * 1e3
    return {name: round(float(value), 3) for name, value in zip(("p50", "p95", "p99"), found, strict=True)}


def _figures(calls: Sequence[_Call]) -> dict[str, Any]:
    """`added_ms`: from sending to the answer, less what the upstream took by its own clock; the service's own word."""
    good = [call for call in calls if call.status == 200]
    shed = [call for call in calls if call.code == "overloaded"]
    return {
        "calls": len(calls),
        "statuses": dict(Counter(f"{call.status} {call.code}".strip() for call in calls)),
        "ok_share": len(good) / max(1, len(calls)),
        "shed_share": len(shed) / max(1, len(calls)),
        "added_ms": quantiles_ms([c.answered - c.sent - c.upstream_ms / 1e3 for c in good]),
        "added_since_due_ms": quantiles_ms([c.answered - c.due - c.upstream_ms / 1e3 for c in good]),
        "overhead_ms": quantiles_ms([c.overhead_ms / 1e3 for c in good]),
        "shed_after_ms": quantiles_ms([c.answered - c.sent for c in shed]),
        "sent_late_ms": quantiles_ms([c.sent - c.due for c in calls]),
        "added_each_ms": [round((c.answered - c.sent) * 1e3 - c.upstream_ms, 2) for c in good],
    }


async def _main(options: argparse.Namespace) -> dict[str, Any]:
    load = _Load(options.url, options.key)
    if options.connections:
        begun = time.perf_counter()
        await load.by_callers(options.connections, options.seconds)
        window = [c for c in load.calls if begun + options.settle <= c.answered < begun + options.seconds]
        good = sum(c.status == 200 for c in window)
        return {"calls_per_s": good / (options.seconds - options.settle), **_figures(window)}
    begin = time.perf_counter() + options.at - time.time()
    await load.at_rate(options.rate, options.seconds, random.Random(options.seed), begin)
    settled = begin + options.settle
    return {
        "onset": _figures([call for call in load.calls if call.due < settled]),
        **_figures([call for call in load.calls if call.due >= settled]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--key")
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--connections", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--settle", type=float, default=3.0, help="seconds at the beginning that are told apart")
    parser.add_argument("--at", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(uvloop.run(_main(parser.parse_args()))))
