"""Requests of each pool as their callers saw them, counted against what the pool promises (`pools[].slo`).

One tally a pool; its labels are pools and fixed words. Knows nothing of HTTP, and never why a request failed, nor which
model it went to.
"""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from serving.call_metrics import DURATION_BUCKETS_S
from serving.errors import (
    CallerGone,
    DeadlineExceeded,
    NothingAvailable,
    NothingFeasible,
    Overloaded,
    ServiceError,
    Unavailable,
    UpstreamError,
    UpstreamRefused,
)
from serving.spread import Spread

if TYPE_CHECKING:
    from prometheus_client import Metric

    from bandit.types import Outcome
    from serving.slo_settings import SloSettings

__all__ = ["Objectives", "Served"]

Result = Literal["ok", "failed", "refused", "cancelled"]
_RESULTS: Final = ("ok", "failed", "refused", "cancelled")
_LEFT: Final = ("caller_went_away", "caller_read_slowly")  # of outcomes
_GONE: Final = (CallerGone, CancelledError, ConnectionResetError)
_OURS: Final = (DeadlineExceeded, NothingAvailable, NothingFeasible, Overloaded, Unavailable, UpstreamError)


class _Tally:
    """One pool's. `slow`: answers that came too late, and callers who left when it was; `late` are the latter alone."""

    __slots__ = ("duration", "late", "results", "slo", "slow")

    def __init__(self, slo: SloSettings | None) -> None:
        self.duration, self.slo = Spread(DURATION_BUCKETS_S), slo
        self.results: dict[Result, int] = dict.fromkeys(_RESULTS, 0)
        self.slow = self.late = 0

    def count(self, result: Result, took_s: float) -> None:
        self.results[result] += 1
        if result == "ok":
            self.duration.observe(took_s)
        if self.slo is not None and self.slo.latency_s is not None and took_s > self.slo.latency_s:
            self.slow += result in ("ok", "cancelled")
            self.late += result == "cancelled"

    def objectives(self) -> Iterator[tuple[str, float, int, int]]:
        """Each objective as (name, target, requests it is about, bad ones among them)."""
        if self.slo is None:
            return
        answered, failed = self.results["ok"], self.results["failed"]
        if self.slo.availability is not None:
            yield "availability", self.slo.availability, answered + failed, failed
        if self.slo.latency_s is not None:
            yield "latency", self.slo.latency_share, answered + self.late, self.slow


class Objectives(Collector):
    """The tallies of all pools. A request of no pool (of one model by its name) is not counted."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._tallies: dict[str, _Tally] = {}

    def follow(self, pools: Mapping[str, SloSettings | None]) -> None:
        """Count for these pools from now on; what was counted of one that stays, stays."""
        known = self._tallies
        self._tallies = {}
        for name, slo in pools.items():
            tally = known.get(name) or _Tally(slo)
            tally.slo = slo
            self._tallies[name] = tally

    def success_quality(self, pool: str) -> float | None:
        """The quality from which on a task of the pool has succeeded; None where the pool does not say."""
        tally = self._tallies.get(pool)
        return None if tally is None or tally.slo is None else tally.slo.success_quality

    def request(self, pool: str, arrived: float, timeout_s: float | None = None) -> Served:
        """`with objectives.request(...) as served:` around the answering of a request that came at `arrived`.

        On the clock of `perf_counter`. `timeout_s` is the caller's own deadline, where there is one.
        """
        return Served(self._tallies.get(pool), self._clock, arrived, timeout_s)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus is shown."""
        requests = CounterMetricFamily(
            "pointsman_requests", "Requests of a pool by what their callers got.", labels=("pool", "result")
        )
        duration = HistogramMetricFamily(
            "pointsman_request_duration_seconds",
            "From a request's arrival to its answer, or its first event, as its caller saw it.",
            labels=("pool",),
        )
        labels = ("pool", "objective")
        about = CounterMetricFamily("pointsman_slo_requests", "Requests an objective is about.", labels=labels)
        bad = CounterMetricFamily("pointsman_slo_bad_requests", "Those of them that missed it.", labels=labels)
        target = GaugeMetricFamily("pointsman_slo_target_ratio", "Share that must not miss it.", labels=labels)
        for pool, tally in self._tallies.items():
            tally.duration.show(duration, pool)
            for result, count in tally.results.items():
                requests.add_metric((pool, result), count)
            for objective, share, total, missed in tally.objectives():
                about.add_metric((pool, objective), total)
                bad.add_metric((pool, objective), missed)
                target.add_metric((pool, objective), share)
        yield from (requests, duration, about, bad, target)


class Served:
    """One request under way: whichever way its block is left, it is counted once."""

    __slots__ = ("_answered", "_arrived", "_clock", "_result", "_tally", "_timeout_s")

    def __init__(
        self, tally: _Tally | None, clock: Callable[[], float], arrived: float, timeout_s: float | None
    ) -> None:
        self._tally, self._clock, self._arrived, self._timeout_s = tally, clock, arrived, timeout_s
        self._answered: float | None = None
        self._result: Result = "ok"

    def answered(self) -> None:
        """Something of a stream has been passed on."""
        if self._answered is None:
            self._answered = self._clock()

    def ended(self, outcome: Outcome | None) -> None:
        """The block ends without an error: how did the answer? None: its caller has gone."""
        if outcome is None:
            self._result = "cancelled"
        elif outcome.status != "ok":  # a stream that broke off
            gone = outcome.status == "cancelled" and outcome.error in _LEFT
            self._result = "cancelled" if gone else "failed"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tally is not None:
            took_s = (self._answered or self._clock()) - self._arrived
            self._tally.count(self._result if error is None else self._of(error, self._tally.slo), took_s)

    def _of(self, error: BaseException, slo: SloSettings | None) -> Result:
        """What an error is to an objective: `refused` is the caller's own doing, such as a budget that is spent."""
        if isinstance(error, _GONE):
            return "cancelled"
        if isinstance(error, DeadlineExceeded) and self._timeout_s is not None:
            promised_s = None if slo is None else slo.latency_s
            if promised_s is None or self._timeout_s < promised_s:  # it asked for more than is promised
                return "cancelled"
        if isinstance(error, ServiceError) and (not isinstance(error, _OURS) or isinstance(error, UpstreamRefused)):
            return "refused"
        return "failed"
