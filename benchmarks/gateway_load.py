"""Callers that never pause, and what they and the server's processes make of it; knows no gateway by name.

`measure` is one row: calls, failures, calls a second, latency quantiles, CPU a call, resident memory; of streams, time
to the first byte of the body and chunks a second. A chunk is one `data:` line that arrived, however it was packed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import aiohttp
import orjson
import uvloop

from benchmarks.open_loop import quantiles_ms
from benchmarks.processes import Server

__all__ = ["KEY", "Load", "Target", "load", "measure", "row"]

KEY = "sk-benchmark-key"
_BODY = {
    "messages": [
        {"role": "system", "content": "You answer in one sentence."},
        {"role": "user", "content": "Why do trains in the mountains run on rack rails, and since when? " * 3},
    ]
}
_HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json", "x-pointsman-category": "facts"}
_LONGEST_S = 60.0  # of one call


@dataclass(frozen=True, slots=True)
class Target:
    """Whom to call and how; with `reward`, feedback follows each call."""

    url: str
    model: str
    reward: bool = False
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Load:
    """What callers saw: of the calls that succeeded seconds to their end, of streams also to their first byte."""

    latencies_s: list[float] = field(default_factory=list)
    first_bytes_s: list[float] = field(default_factory=list)
    chunks: int = 0
    failures: Counter[str] = field(default_factory=Counter)


async def load(
    target: Target, *, concurrency: int, calls: int | None = None, seconds: float | None = None, stream: bool = False
) -> Load:
    """`concurrency` callers at a time: so many calls in all, or until so many seconds have passed."""
    seen = Load()
    remaining = None if calls is None else iter(range(calls))
    ends = time.perf_counter() + (seconds or 0.0)

    async def caller(session: aiohttp.ClientSession) -> None:
        while time.perf_counter() < ends if remaining is None else next(remaining, None) is not None:
            try:
                await _ask(session, target, seen, stream=stream)
            except (aiohttp.ClientError, TimeoutError) as error:
                seen.failures[type(error).__name__] += 1

    async with aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=concurrency),
        headers=_HEADERS | dict(target.headers),
        timeout=aiohttp.ClientTimeout(total=_LONGEST_S),
    ) as session:
        await asyncio.gather(*(caller(session) for _ in range(concurrency)))
    return seen


async def _ask(session: aiohttp.ClientSession, target: Target, seen: Load, *, stream: bool) -> None:
    """One call, and its feedback."""
    body = orjson.dumps({"model": target.model, **_BODY} | ({"stream": True} if stream else {}))
    begun, first, chunks, raw = time.perf_counter(), 0.0, 0, b""
    async with session.post(f"{target.url}/v1/chat/completions", data=body) as response:
        if stream and response.status == 200:
            async for data in response.content.iter_any():
                first = first or time.perf_counter()
                chunks += data.count(b"data: ")
                raw = (raw + data)[-64:]
        else:
            raw = await response.read()
    if response.status != 200 or (stream and b"[DONE]" not in raw):
        seen.failures["the stream ended early" if response.status == 200 else f"status {response.status}"] += 1
        return
    seen.latencies_s.append(time.perf_counter() - begun)
    if stream:
        seen.first_bytes_s.append(first - begun)
        seen.chunks += chunks
    if target.reward:
        item = {"decision_id": orjson.loads(raw)["id"], "quality": float(len(seen.latencies_s) % 10 > 1)}
        async with session.post(f"{target.url}/reward", data=orjson.dumps(item)) as response:
            await response.read()
        if response.status != 200:
            seen.failures[f"reward: status {response.status}"] += 1


def measure(
    server: Server,
    target: Target,
    *,
    concurrency: int,
    calls: int | None = None,
    seconds: float | None = None,
    stream: bool = False,
    tolerant: bool = False,
) -> dict[str, float]:
    """One row of one server under load. Raises RuntimeError where a call failed, unless `tolerant`: then they count."""
    cpu_s, begun = server.cpu_s(), time.perf_counter()
    seen = uvloop.run(load(target, concurrency=concurrency, calls=calls, seconds=seconds, stream=stream))
    wall_s = time.perf_counter() - begun
    if seen.failures and not tolerant:
        raise RuntimeError(f"{target.url}: {dict(seen.failures)}")
    return row(seen, wall_s, server.cpu_s() - cpu_s, stream=stream) | {"rss_mb": round(server.rss_mb(), 1)}


def row(seen: Load, wall_s: float, cpu_s: float, *, stream: bool) -> dict[str, float]:
    """The figures of one load that took so long, and so much CPU at the server; without a success, no quantiles.

    CPU is spread over all calls, failed ones too; of streams over the chunks that arrived.
    """
    failed = seen.failures.total()
    calls = len(seen.latencies_s) + failed
    times = quantiles_ms(seen.first_bytes_s if stream else seen.latencies_s) or {}
    if stream:
        return {
            "streams": calls,
            "failed": failed,
            "chunks_per_s": round(seen.chunks / wall_s, 1),
            **{f"first_byte_{name}_ms": value for name, value in times.items()},
            "cpu_us_per_chunk": round(cpu_s / max(1, seen.chunks) * 1e6, 1),
        }
    return {
        "calls": calls,
        "failed": failed,
        "calls_per_s": round(len(seen.latencies_s) / wall_s, 1),
        **{f"{name}_ms": value for name, value in times.items()},
        "cpu_us_per_call": round(cpu_s / max(1, calls) * 1e6, 1),
    }
