"""Prometheus metrics of the service, each with bounded labels: pools, models and fixed words, never callers.

Only counts what it is told. The hot path uses children bound once a model: looking labels up costs more than counting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from collections.abc import Callable

    from bandit.pool import Pool
    from bandit.types import Outcome
    from serving.traffic.cache import AnswerCache
    from serving.traffic.gate import Gate

__all__ = ["Metrics"]

# OpenTelemetry's GenAI conventions for durations, in seconds.
_DURATION_BUCKETS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_OVERHEAD_BUCKETS = (0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128)
_STATES = ("unknown", "admitted", "filtered", "probing")


class _Series:
    """The bound children of one (pool, model)."""

    def __init__(self, metrics: Metrics, pool: str, model: str) -> None:
        self._metrics, self._labels = metrics, (pool, model)
        self.duration = metrics.duration.labels(pool, model)
        self.first_token = metrics.first_token.labels(pool, model)
        self.input_tokens = metrics.tokens.labels(pool, model, "input")
        self.output_tokens = metrics.tokens.labels(pool, model, "output")
        self.cost = metrics.cost.labels(pool, model)
        self._calls: dict[tuple[str, str], Counter] = {}

    def calls(self, mode: str, status: str) -> Counter:
        child = self._calls.get((mode, status))
        if child is None:
            child = self._calls[mode, status] = self._metrics.calls.labels(*self._labels, mode, status)
        return child


class Metrics:
    """All series, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        pool_model = ("pool", "model")
        self.calls = self._counter("calls", "Attempts by their outcome.", (*pool_model, "mode", "status"))
        self.duration = self._histogram("call_duration_seconds", "Upstream time of a call.", pool_model)
        self.first_token = self._histogram("time_to_first_token_seconds", "Upstream time to first token.", pool_model)
        self.tokens = self._counter("tokens", "Tokens of successful calls.", (*pool_model, "direction"))
        self.cost = self._counter("cost_usd", "Known cost of calls in USD.", pool_model)
        self.feedback = self._counter("feedback", "Feedback items by what became of them.", ("status",))
        self.quality_sum = self._counter("quality_sum", "Sum of first feedback's quality.", pool_model)
        self.quality_count = self._counter("quality_count", "Number of first feedback with a quality.", pool_model)
        self.benchmark_results = self._counter(
            "benchmark_results", "Benchmark results posted, by what became of them.", ("model", "status")
        )
        self.benchmark_runs = self._counter("benchmark_runs", "Scheduled runs, by how they ended.", ("suite", "status"))
        self.state = Gauge(
            "pointsman_filter_state", "1 for the state an arm is in.", (*pool_model, "state"), registry=self.registry
        )
        self.multiplier = Gauge(
            "pointsman_pacer_multiplier", "What the budget makes a cost weigh.", ("pool",), registry=self.registry
        )
        self.rejected = self._counter("rejected_requests", "Requests refused, by error code.", ("code",))
        self.unexpected = self._counter("unexpected_errors", "Errors nobody foresaw; see the service's log.", ())
        self.store_pending = Gauge(
            "pointsman_store_pending_events", "Events waiting to be durable.", registry=self.registry
        )
        self.log_lag = Gauge(
            "pointsman_log_lag_events", "Durable events not yet in the analytical log.", registry=self.registry
        )
        self.log_trouble = Gauge(
            "pointsman_log_trouble",
            "Since the start: flushes of the analytical log that failed, that found it in use, and events it rejected.",
            ("what",),
            registry=self.registry,
        )
        self.spared = self._counter(
            "batching_spared_calls", "Upstream calls that batches made unnecessary.", ("model",)
        )
        self.loop_busy = Gauge(
            "pointsman_loop_busy_share", "Share of the time in which the event loop was late.", registry=self.registry
        )
        self.gate_calls = Gauge(
            "pointsman_gate_calls", "Inference calls that run or wait for a place.", ("state",), registry=self.registry
        )
        self.shed = self._counter("gate_shed", "Calls turned away, by priority and why.", ("priority", "why"))
        self.cache_requests = self._counter(
            "cache_requests", "Calls of pools that keep answers, by what the cache did.", ("pool", "result")
        )
        self.cache_saved = self._counter("cache_saved_usd", "What answers from the cache would have cost.", ("pool",))
        self.cache_entries = Gauge("pointsman_cache_entries", "Answers kept.", ("pool",), registry=self.registry)
        self.cache_bytes = Gauge("pointsman_cache_bytes", "Bytes they take.", ("pool",), registry=self.registry)
        self.overhead = Histogram(
            "pointsman_overhead_seconds",
            "Time of a call not spent waiting for the upstream.",
            buckets=_OVERHEAD_BUCKETS,
            registry=self.registry,
        )
        self._series: dict[tuple[str, str], _Series] = {}
        self._shown: dict[str, tuple[str, ...]] = {}

    def attempt(self, pool: str, mode: str, outcome: Outcome) -> None:
        """Count one attempt."""
        series = self._series.get((pool, outcome.model))
        if series is None:
            series = self._series[pool, outcome.model] = _Series(self, pool, outcome.model)
        series.calls(mode, outcome.status).inc()
        if mode == "cached":  # no model was asked: nothing that follows is its doing
            self.cache_saved.labels(pool).inc(outcome.saved_usd or 0.0)
            return
        if outcome.status == "ok" and outcome.latency_s is not None:
            series.duration.observe(outcome.latency_s)
            if outcome.stream and outcome.time_to_first_token_s is not None:
                series.first_token.observe(outcome.time_to_first_token_s)
            series.input_tokens.inc(outcome.input_tokens or 0)
            series.output_tokens.inc(outcome.output_tokens or 0)
        if outcome.cost_usd is not None:
            series.cost.inc(outcome.cost_usd)

    def count_shed(self, priority: int, why: str) -> None:
        """Count a call that the gate turned away; there are as many priorities as tiers have."""
        self.shed.labels(str(priority), why).inc()

    def cached(self, pool: str, result: str) -> None:
        """Count a call of a pool that keeps answers: hit, shared, miss or bypassed."""
        self.cache_requests.labels(pool, result).inc()

    def watch_cache(self, pool: str, cache: Callable[[], AnswerCache]) -> None:
        """Show what a pool keeps from now on."""
        self.cache_entries.labels(pool).set_function(lambda: len(cache()))
        self.cache_bytes.labels(pool).set_function(lambda: cache().bytes)

    def count_spared(self, model: str, calls: int) -> None:
        """Count the calls to a model that a batch made unnecessary."""
        self.spared.labels(model).inc(calls)

    def watch_gate(self, gate: Gate) -> None:
        """Show the gate from now on."""
        if (pace := gate.pace) is not None:
            self.loop_busy.set_function(lambda: pace.busy_share)
        self.gate_calls.labels("running").set_function(lambda: gate.in_use)
        self.gate_calls.labels("waiting").set_function(lambda: gate.waiting)

    def graded(self, pool: str, model: str, quality: float) -> None:
        """Count the first quality posted for a decision."""
        self.quality_sum.labels(pool, model).inc(quality)
        self.quality_count.labels(pool, model).inc()

    def watch(self, pool: Pool) -> None:
        """Show a pool's standing and multiplier from now on."""
        self.filter_states(pool)
        if pool.pacer is not None:
            pacer = pool.pacer
            self.multiplier.labels(pool.name).set_function(lambda: pacer.multiplier)

    def filter_states(self, pool: Pool) -> None:
        """Show a pool's standing anew, without the models that have left it."""
        for name in set(self._shown.get(pool.name, ())).difference(pool.names):
            for state in _STATES:
                self.state.remove(pool.name, name, state)
        self._shown[pool.name] = pool.names
        for name, current in zip(pool.names, pool.filters.states, strict=True):
            for state in _STATES:
                self.state.labels(pool.name, name, state).set(float(state == current))

    def render(self) -> bytes:
        """The text exposition format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, text: str, labels: tuple[str, ...]) -> Counter:
        return Counter(f"pointsman_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...]) -> Histogram:
        return Histogram(f"pointsman_{name}", text, labels, buckets=_DURATION_BUCKETS, registry=self.registry)
