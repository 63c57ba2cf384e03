"""What traces cost a call in a loop of their own: the middleware without them, with them, and packing a batch.

    python -m benchmarks.telemetry_loop [--calls 3000] [--rounds 25]

CPU time of this process, the best round: what one call of one attempt adds, without a server around it.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy

from serving.telemetry.about import ABOUT
from serving.telemetry.export import Exporter
from serving.telemetry.requests import name_request, request_middleware
from serving.telemetry.settings import TracingSettings
from serving.telemetry.traces import Tracing

__all__ = ["main"]

_DECISION: Any = SimpleNamespace(
    decision_id="pm-" + "0" * 32, pool="auto", mode="bandit", chosen="model-1", propensity=0.25
)
_CALL: Any = SimpleNamespace(model="auto", stream=False)
_MODEL: Any = SimpleNamespace(settings=None, upstream_model="model-1", name="model-1")
_PLACE: Any = SimpleNamespace(host="127.0.0.1", port=8080, name="1")
_OUTCOME: Any = SimpleNamespace(
    input_tokens=60, output_tokens=120, cached_tokens=None, http_status=200, cost_usd=1e-4, stream=False,
    status="ok", error=None, model="model-1", time_to_first_token_s=None,
)  # fmt: skip


class _Request(dict[str, Any]):
    headers = CIMultiDictProxy(CIMultiDict({"Authorization": "Bearer x", "Host": "127.0.0.1"}))
    method, path = "POST", "/v1/chat/completions"


async def run(options: argparse.Namespace) -> None:
    """Measure and print."""
    response: Any = SimpleNamespace(headers=CIMultiDict(), status=200)
    durable = asyncio.get_running_loop().create_future()
    durable.set_result(None)

    async def handler(request: Any) -> Any:
        about = request[ABOUT]
        about.admitted(_CALL)
        about.deciding()
        about.decided(_DECISION)
        about.logging(durable)
        about.attempting(0, _MODEL, _PLACE)
        about.attempted(_OUTCOME)
        return response

    spans: list[Any] = []
    sink: Any = SimpleNamespace(put=lambda more: spans.extend(more) if len(spans) < 512 else None)
    without = request_middleware(None, access=False, rng=random.Random())
    traced = request_middleware(Tracing(sink, 1.0, random.Random()), access=False, rng=random.Random())
    exporter = Exporter(TracingSettings(endpoint="http://127.0.0.1:4318"), sink, lambda _result, _count: None)

    def around(middleware: Any) -> Callable[[], Awaitable[None]]:
        async def call() -> None:
            request: Any = _Request()
            await middleware(request, handler)
            await name_request(request, response)

        return call

    async def pack() -> None:
        exporter._packed(spans)  # noqa: SLF001 - what its thread does

    for name, work, times, each in (
        ("a call, not traced", around(without), options.calls, 1),
        ("a call, traced", around(traced), options.calls, 1),
        ("packing a span of a batch", pack, 5, 512),
    ):
        print(f"{name:28}{await _best_us(work, times, options.rounds) / each:8.2f} us")


async def _best_us(work: Callable[[], Awaitable[None]], times: int, rounds: int) -> float:
    best_s = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        for _ in range(times):
            await work()
        best_s = min(best_s, (time.process_time() - begun) / times)
        await asyncio.sleep(0)
    return best_s * 1e6


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3_000)
    parser.add_argument("--rounds", type=int, default=25)
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
