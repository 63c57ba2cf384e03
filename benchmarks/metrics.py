"""What metrics cost: a call's counting, the same values in the client library's histogram, and a scrape.

    python -m benchmarks.metrics [--calls 100000] [--pools 5] [--models 10]

CPU time of this process, the best of five rounds, on a streamed call that was drawn and answered.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
from prometheus_client import CollectorRegistry, Histogram

from bandit.types import Context, Decision, Outcome
from serving.call_metrics import DURATION_BUCKETS_S
from serving.metrics import Metrics
from serving.slo_settings import SloSettings
from serving.spread import Spread

__all__ = ["main"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--pools", type=int, default=5)
    parser.add_argument("--models", type=int, default=10)
    options = parser.parse_args()
    metrics = Metrics()
    slo = SloSettings(availability=0.999, latency_s=2.0)
    metrics.objectives.follow({f"pool-{p}": slo for p in range(options.pools)})
    calls = [_call(metrics, f"pool-{p}", f"model-{m}") for p in range(options.pools) for m in range(options.models)]
    for call in calls:
        call()
    spread = Spread(DURATION_BUCKETS_S)
    known = Histogram("h", "h", buckets=DURATION_BUCKETS_S, registry=CollectorRegistry())
    n = options.calls
    print(f"a call's counting          {_best_us(calls[0], n):8.2f} us")
    print(f"one value in a Spread      {_best_us(lambda: spread.observe(0.7), n):8.2f} us")
    print(f"one in the library's       {_best_us(lambda: known.observe(0.7), n):8.2f} us")
    print(f"a scrape, {options.pools} pools of {options.models} models, {len(metrics.render()):,} bytes:")
    print(f"  on the event loop        {_best_us(metrics.collected, 20) / 1000:8.2f} ms")
    collected = metrics.collected()
    print(f"  on another thread        {_best_us(lambda: metrics.render(collected), 20) / 1000:8.2f} ms")


def _call(metrics: Metrics, pool: str, model: str) -> Callable[[], None]:
    nan, one = np.full(1, np.nan), np.ones(1)
    context = Context(np.zeros(0, dtype=np.float32), "none", 900)
    decision = Decision(
        "pm-1", 1.0, pool, "bandit", 0, context, "p", (model,), one > 0.0, one, model, 1.0, nan, nan, nan
    )
    outcome = Outcome("pm-1", 1.0, model, "ok", 0.7, 0.2, 900, 250, 0.001, stream=True)

    def call() -> None:
        with metrics.objectives.request(pool, time.perf_counter()) as served:
            metrics.calls.decided(decision)
            served.answered()
            metrics.calls.attempt(pool, "bandit", outcome)
            metrics.overhead.observe(0.001)
            served.ended(outcome)

    return call


def _best_us(work: Callable[[], object], times: int) -> float:
    best_s = float("inf")
    for _ in range(5):
        begun = time.process_time()
        for _ in range(times):
            work()
        best_s = min(best_s, (time.process_time() - begun) / times)
    return best_s * 1e6


if __name__ == "__main__":
    main()
