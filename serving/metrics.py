"""Prometheus metrics of the service, each with bounded labels: pools, models and fixed words, never callers.

Owns the registry and what is counted seldom. What every call adds to is in `call_metrics` and `objectives`; what can be
read when Prometheus asks, in `state_metrics`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily

from serving.call_metrics import CallMetrics
from serving.objectives import Objectives
from serving.state_metrics import StateMetrics

if TYPE_CHECKING:
    from serving.records import Record

__all__ = ["Metrics"]

_OVERHEAD_BUCKETS_S = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)


class _Collected(CollectorRegistry):
    """A registry of what has been collected already."""

    def __init__(self, collected: list[Metric]) -> None:
        super().__init__()
        self._families = collected

    def collect(self) -> Iterator[Metric]:
        return iter(self._families)


class Metrics:
    """All series, in a registry of their own. All methods belong to the event loop's thread.

    `of_all`: where there are more workers, what shows those of all.
    """

    def __init__(self) -> None:
        disable_created_metrics()  # a third of all lines, which nobody reads
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.calls, self.objectives, self.state = CallMetrics(), Objectives(), StateMetrics()
        for collector in (self.calls, self.objectives, self.state):
            self.registry.register(collector)
        self.feedback = self._counter("feedback", "Feedback items by what became of them.", ("status",))
        self.benchmark_results = self._counter(
            "benchmark_results", "Benchmark results posted, by what became of them.", ("model", "status")
        )
        self.benchmark_runs = self._counter("benchmark_runs", "Scheduled runs, by how they ended.", ("suite", "status"))
        self.reloads = self._counter("reloads", "Reloads of the configuration, by what became of them.", ("result",))
        self.rejected = self._counter("rejected_requests", "Requests refused, by error code.", ("code",))
        self.unexpected = self._counter("unexpected_errors", "Errors nobody foresaw; see the service's log.", ())
        self.spared = self._counter(
            "batching_spared_calls", "Upstream calls that batches made unnecessary.", ("model",)
        )
        self.faults = self._counter("faults_injected", "Faults injected on purpose.", ("model", "kind"))
        self.shed = self._counter("gate_shed", "Calls turned away, by priority and why.", ("priority", "why"))
        self.cache_requests = self._counter(
            "cache_requests", "Calls of pools that keep answers, by what the cache did.", ("pool", "result")
        )
        self.overhead = Histogram(
            "pointsman_overhead_seconds",
            "Time of a call not spent waiting for the upstream.",
            buckets=_OVERHEAD_BUCKETS_S,
            registry=self.registry,
        )
        self.of_all: Callable[[], Awaitable[bytes]] | None = None
        self.trace_spans = self._counter("trace_spans", "Spans of traces, by what became of them.", ("result",))

    def count_shed(self, priority: int, why: str) -> None:
        """Count a call that the gate turned away; there are as many priorities as tiers have."""
        self.shed.labels(str(priority), why).inc()

    def cached(self, pool: str, result: str) -> None:
        """Count a call of a pool that keeps answers: hit, shared, miss or bypassed."""
        self.cache_requests.labels(pool, result).inc()

    def count_spared(self, model: str, calls: int) -> None:
        """Count the calls to a model that a batch made unnecessary."""
        self.spared.labels(model).inc(calls)

    def count_fault(self, model: str, kind: str) -> None:
        """Count a fault that was injected on purpose."""
        self.faults.labels(model, kind).inc()

    def traced(self, result: str, spans: int) -> None:
        """Count spans of traces: exported, rejected by the receiver, failed to reach it, dropped before."""
        if spans:
            self.trace_spans.labels(result).inc(spans)

    def graded(self, record: Record, quality: float) -> None:
        """Count the first quality posted for a decision."""
        pool, outcome = record.decision.pool, record.outcome
        cost_usd = None if outcome is None else outcome.cost_usd
        self.calls.graded(pool, record.served_by, quality, cost_usd, self.objectives.success_quality(pool))

    async def exposition(self) -> bytes:
        """What Prometheus is shown."""
        if self.of_all is not None:
            return await self.of_all()
        collected = self.collected()  # on the loop's thread: the numbers change there; the text takes longer
        return await asyncio.to_thread(self.render, [*collected, self.worker_up({0: True})])

    @staticmethod
    def worker_up(up: Mapping[int, bool]) -> Metric:
        """Which workers have shown their metrics."""
        family = GaugeMetricFamily("pointsman_worker_up", "1 for a worker that shows its metrics.", labels=("worker",))
        for worker, shows in up.items():
            family.add_metric((str(worker),), float(shows))
        return family

    def collected(self) -> list[Metric]:
        """What is shown, as it is now; `render` may then be called on another thread."""
        return list(self.registry.collect())

    def render(self, collected: list[Metric] | None = None) -> bytes:
        """The text exposition format of what was collected, or is now."""
        return generate_latest(self.registry if collected is None else _Collected(collected))

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"pointsman_{name}", text, labels, registry=self.registry)
