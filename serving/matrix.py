"""The accuracy matrix: per model and category what benchmarks and traffic say of it, with how sure one may be.

Puts the log's figures beside the present state of models and pools. Knows nothing of SQL or HTTP, and decides nothing.
"""

from __future__ import annotations

from typing import Any

from bandit.intervals import wilson
from bandit.pool import Pool
from serving.analytics import AnalyticalLog
from serving.errors import UnknownModel
from serving.learner import Learner
from serving.log_figures import Cell, Quantiles, read_cells

__all__ = ["Matrix"]

_DAY_S = 86_400.0
_READ_TIMEOUT_S = 30.0


class Matrix:
    """Answers `GET /admin/matrix`; a pool's states are those of this moment, figures those of the log."""

    def __init__(self, learner: Learner, log: AnalyticalLog) -> None:
        self._learner, self._log = learner, log

    async def of(self, pool: str | None, days: float, now: float) -> dict[str, Any]:
        """The matrix of one pool's models, or of all, over the `days` before unix time `now`, as JSON.

        Raises UnknownModel, LogUnavailable.
        """
        pools, since = self._learner.pools, now - days * _DAY_S
        if pool is not None and pool not in pools:
            raise UnknownModel(pool, list(pools), "pool")
        cells = await self._log.read(lambda log: read_cells(log, since=since, until=now, pool=pool), _READ_TIMEOUT_S)
        shown = list(pools.values()) if pool is None else [pools[pool]]
        names = self._learner.roster.names if pool is None else list(pools[pool].names)
        return {
            "pool": pool,
            "days": days,
            "since": since,
            "until": now,
            "log_lag_events": self._log.lag_events,
            "models": [_model(name, shown, [cell for cell in cells if cell.model == name]) for name in names],
            "untested_limits": [entry for of in shown for entry in _untested(of)],
        }


def _model(name: str, pools: list[Pool], cells: list[Cell]) -> dict[str, Any]:
    overall = next((cell for cell in cells if cell.overall), Cell(name, None, overall=True))
    by_category = sorted((cell for cell in cells if not cell.overall), key=lambda cell: cell.category or "")
    having = [pool for pool in pools if name in pool.names]
    return {
        "model": name,
        "pools": [
            {
                "pool": pool.name,
                "state": pool.filters.states[pool.names.index(name)],
                "newcomer": name in pool.newcomers.names,
            }
            for pool in having
        ],
        "overall": _cell(overall),
        "categories": [{"category": cell.category, **_cell(cell)} for cell in by_category],
    }


def _cell(cell: Cell) -> dict[str, Any]:
    return {
        "accuracy": _share(cell.accuracy_sum, cell.accuracy_count),
        "quality": _share(cell.quality_sum, cell.quality_count),
        "calls": cell.calls,
        "failed": cell.failed,
        "latency_s": _quantiles(cell.latency_quantiles_s, cell.latency_count),
        "cost_usd_per_call": {"mean": cell.cost_mean_usd, "samples": cell.cost_count},
        "benchmark_calls": cell.benchmark_calls,
        "benchmark_failed": cell.benchmark_failed,
        "benchmark_latency_s": _quantiles(cell.benchmark_latency_quantiles_s, cell.benchmark_latency_count),
        "benchmark_cost_usd_per_call": {"mean": cell.benchmark_cost_mean_usd, "samples": cell.benchmark_cost_count},
    }


def _quantiles(values: Quantiles | None, count: int) -> dict[str, Any]:
    p50, p95 = values or (None, None)
    return {"p50": p50, "p95": p95, "samples": count}


def _share(total: float | None, count: int) -> dict[str, Any]:
    """A mean of grades with Wilson's interval at 95 %; all None where there is no grade."""
    if not count:
        return {"mean": None, "low": None, "high": None, "samples": 0}
    total = min(float(total or 0.0), float(count))  # a sum may round upwards
    low, high = wilson(total, count)
    return {"mean": total / count, "low": low, "high": high, "samples": count}


def _untested(pool: Pool) -> list[dict[str, Any]]:
    """The pool's limits on which some model has no evidence at all: unknown is not compliant."""
    entries = []
    for index, limit in enumerate(pool.standing.limits):
        untested = [
            name
            for arm, name in enumerate(pool.names)
            if pool.filters.states[arm] == "unknown" and not pool.filters.evidence(arm, index).calls
        ]
        if untested:
            needs = _NEEDS[pool.constraints.accuracy_evidence] if limit.kind == "min_accuracy" else "calls"
            entries.append({"pool": pool.name, "limit": limit.kind, "needs": needs, "models": untested})
    return entries


_NEEDS = {"benchmarks": "benchmark results", "feedback": "feedback", "both": "benchmark results or feedback"}
