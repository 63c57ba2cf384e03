"""Metrics that are read from the parts of the service when Prometheus asks, and cost a call nothing.

Owns their names and forms. The parts are given by `serving.app`; one that is missing shows nothing. Changes nothing,
and never shows whom a budget's counter belongs to: labels are names of the configuration and fixed words.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from prometheus_client import Metric

    from bandit.pool import Pool
    from serving.access.ledger import Ledger
    from serving.analytics import AnalyticalLog
    from serving.log_retention import LogRetention
    from serving.store import Store
    from serving.traffic.caching import Caching
    from serving.traffic.gate import Gate
    from serving.traffic.shadow import Shadows
    from serving.traffic.state import Traffic
    from serving.upstream import Upstreams

__all__ = ["StateMetrics"]

_STATES: Final = ("unknown", "admitted", "filtered", "probing")
_BREAKER: Final = ("closed", "open", "half_open")
_PHASES: Final = ("running", "promoted", "rolled_back", "aborted", "released")
_LEARNING: Final = ("apply", "observe", "bypass")


class _Writing(Protocol):
    """What a store shows of itself."""

    @property
    def pending(self) -> int: ...
    @property
    def healthy(self) -> bool: ...


@dataclass(slots=True, eq=False)
class StateMetrics(Collector):
    """The parts that are looked at; `wall` and `monotonic` are clocks, in seconds."""

    pools: Mapping[str, Pool] = field(default_factory=dict)
    traffic: Traffic | None = None
    upstreams: Upstreams | None = None
    ledger: Ledger | None = None
    gate: Gate | None = None
    shadows: Shadows | None = None
    caching: Caching | None = None
    store: Store | _Writing | None = None
    store_limit: int = 0
    log: AnalyticalLog | None = None
    retention: LogRetention | None = None
    wall: Callable[[], float] = time.time
    monotonic: Callable[[], float] = time.monotonic

    def watch(
        self,
        traffic: Traffic,
        ledger: Ledger,
        upstreams: Upstreams,
        *,
        store: Store | _Writing,
        store_limit: int,
        log: AnalyticalLog,
    ) -> None:
        """Look at these parts from now on."""
        self.traffic, self.ledger, self.upstreams = traffic, ledger, upstreams
        self.store, self.store_limit, self.log = store, store_limit, log

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is shown."""
        yield from self._of_pools()
        yield from self._of_traffic()
        yield from self._of_endpoints()
        yield from self._of_budgets()
        yield from self._of_load()
        yield from self._of_caches()
        yield from self._of_stores()

    def _of_pools(self) -> Iterator[Metric]:
        states = _gauge("filter_state", "1 for the state a model is in.", "pool", "model", "state")
        multiplier = _gauge("pacer_multiplier", "What the pool's budget makes a cost weigh.", "pool")
        spent = _gauge("pacer_spent_ratio", "Of its budget, what the pool's last 1,000 calls cost.", "pool")
        for name, pool in self.pools.items():
            for model, state in zip(pool.names, pool.filters.states, strict=True):
                _one_of(states, _STATES, state, name, model)
            if pool.pacer is not None:
                multiplier.add_metric((name,), pool.pacer.multiplier)
                spent.add_metric((name,), pool.pacer.spent_share)
        yield from (states, multiplier, spent)

    def _of_traffic(self) -> Iterator[Metric]:
        learning = _gauge("learning_state", "1 for what the pool does with what it learned.", "pool", "state")
        share = _gauge("canary_share_ratio", "Share of the pool's calls that its canary gets.", "pool", "model")
        phase = _gauge("canary_phase", "1 for the phase of the pool's last canary.", "pool", "model", "phase")
        held = _gauge("canary_held", "1 while a canary runs without progress.", "pool", "model")
        for name, traffic in ({} if self.traffic is None else self.traffic.pools).items():
            _one_of(learning, _LEARNING, traffic.learning, name)
            trial = traffic.canary.trial
            if trial is not None:
                share.add_metric((name, trial.plan.model), trial.share if trial.running else 0.0)
                held.add_metric((name, trial.plan.model), float(trial.running and trial.held is not None))
                _one_of(phase, _PHASES, trial.phase, name, trial.plan.model)
        yield from (learning, share, phase, held)

    def _of_endpoints(self) -> Iterator[Metric]:
        breaker = _gauge("breaker_state", "1 for the state of an endpoint's breaker.", "model", "endpoint", "state")
        calls = _gauge("endpoint_calls", "Calls under way at an endpoint.", "model", "endpoint")
        if self.upstreams is not None:
            now = self.monotonic()
            for model in self.upstreams:
                for endpoint in self.upstreams[model].endpoints:
                    _one_of(breaker, _BREAKER, endpoint.breaker.state(now), model, endpoint.name)
                    calls.add_metric((model, endpoint.name), endpoint.under_way)
        yield from (breaker, calls)

    def _of_budgets(self) -> Iterator[Metric]:
        text = "Of the budget's limit, what is left to the member that has least left."
        share = _gauge("budget_left_ratio", text, "budget")
        usd = _gauge("budget_left_usd", "The same of a budget in USD, in USD.", "budget")
        tokens = _gauge("budget_left_tokens", "The same of a budget in tokens, in tokens.", "budget")
        members = _gauge("budget_members", "Members of the budget that are counted.", "budget")
        for left in () if self.ledger is None else self.ledger.least_left(self.wall()):
            share.add_metric((left.budget,), left.share)
            (usd if left.unit == "usd" else tokens).add_metric((left.budget,), left.amount)
            members.add_metric((left.budget,), left.members)
        yield from (share, usd, tokens, members)

    def _of_load(self) -> Iterator[Metric]:
        limit = _gauge("gate_limit", "Calls that may run at a time now.")
        calls = _gauge("gate_calls", "Inference calls that run or wait for a place.", "state")
        shadows = _gauge("shadow_calls", "Shadow calls under way.")
        busy = _gauge("loop_busy_share", "Share of the time in which the event loop was late.")
        if self.gate is not None:
            if self.gate.pace is not None:
                busy.add_metric((), self.gate.pace.busy_share)
            limit.add_metric((), self.gate.limit)
            calls.add_metric(("running",), self.gate.in_use)
            calls.add_metric(("waiting",), self.gate.waiting)
        if self.shadows is not None:
            shadows.add_metric((), self.shadows.under_way)
        yield from (limit, calls, busy, shadows)

    def _of_caches(self) -> Iterator[Metric]:
        entries, size = _gauge("cache_entries", "Answers kept.", "pool"), _gauge("cache_bytes", "Their size.", "pool")
        for pool, answers in () if self.caching is None else self.caching.kept():
            entries.add_metric((pool,), len(answers))
            size.add_metric((pool,), answers.bytes)
        yield from (entries, size)

    def _of_stores(self) -> Iterator[Metric]:
        healthy = _gauge("store_healthy", "1 while events can be kept; 0: a write has failed.")
        pending = _gauge("store_pending_events", "Events waiting to be durable.")
        limit = _gauge("store_queue_limit_events", "Most events that may wait; beyond it calls are refused.")
        lag = _gauge("log_lag_events", "Durable events not yet in the analytical log.")
        trouble = CounterMetricFamily(
            "pointsman_log_trouble",
            "Flushes of the analytical log that failed, that found it in use, and events it rejected.",
            labels=("what",),
        )
        if self.store is not None:
            healthy.add_metric((), float(self.store.healthy))
            pending.add_metric((), self.store.pending)
            limit.add_metric((), self.store_limit)
        if self.log is not None:
            lag.add_metric((), self.log.lag_events)
            trouble.add_metric(("failed",), self.log.failed_flushes)
            trouble.add_metric(("in_use",), self.log.busy_flushes)
            trouble.add_metric(("rejected",), self.log.rejected_events)
        removed = CounterMetricFamily(
            "pointsman_log_removed_rows", "Rows that left the analytical log, being too old.", labels=("table",)
        )
        for table, count in ({} if self.retention is None else self.retention.removed_rows).items():
            removed.add_metric((table,), count)
        yield from (healthy, pending, limit, lag, trouble, removed)


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"pointsman_{name}", text, labels=labels)


def _one_of(family: GaugeMetricFamily, values: tuple[str, ...], current: str, *labels: str) -> None:
    """A sample for each value, 1 for the current one."""
    for value in values:
        family.add_metric((*labels, value), float(value == current))
