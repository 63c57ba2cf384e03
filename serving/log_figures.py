"""Figures by model and category from the analytical log: the SQL of the accuracy matrix, and of its schedule.

Knows the log's tables, which rows count and how they are summed up. Never knows which models or pools there are now,
how sure one may be of a figure, or how it is shown.
"""
# ruff: noqa: S608 - statements are built from this file's own constants

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serving.imputation import IMPUTED

if TYPE_CHECKING:
    import duckdb

__all__ = ["Cell", "Quantiles", "last_result_ts", "read_cells"]

Quantiles = Sequence[float]


@dataclass(frozen=True, slots=True)
class Cell:
    """What is known of one model, in all or in one category; `overall` tells apart from the category None.

    A mean, and the quantiles (p50, p95), are None where their count is 0. `calls` are attempts, `failed` those the
    model is to blame for.
    """

    model: str
    category: str | None
    overall: bool
    accuracy_sum: float = 0.0
    accuracy_count: int = 0
    quality_sum: float = 0.0
    quality_count: int = 0
    calls: int = 0
    failed: int = 0
    latency_quantiles_s: Quantiles | None = None
    latency_count: int = 0
    cost_mean_usd: float | None = None
    cost_count: int = 0
    benchmark_calls: int = 0
    benchmark_failed: int = 0
    benchmark_latency_quantiles_s: Quantiles | None = None
    benchmark_latency_count: int = 0
    benchmark_cost_mean_usd: float | None = None
    benchmark_cost_count: int = 0


_BLAMELESS = "(400, 409, 413, 415, 422)"  # the caller's own request was at fault: as bandit.types.Outcome.failed

# The latest answer to each item of each suite: a run on a sample leaves earlier runs' answers to other items standing.
# An error is no answer.
_GRADES = """
    SELECT model, category, quality FROM log.benchmark_results
    WHERE ts >= $since AND ts < $until AND quality IS NOT NULL AND error IS NULL
    QUALIFY row_number() OVER (PARTITION BY suite, item_id, model ORDER BY seq DESC) = 1
"""
_BENCHMARK_CALLS = """
    SELECT model, category, error IS NOT NULL AS failed, error IS NULL AS answered, latency_s, cost_usd
    FROM log.benchmark_results WHERE ts >= $since AND ts < $until
"""
# A pinned call is somebody's own choice of a model, and a benchmark's calls are such: they are not the pools' traffic.
# An answer from the cache asked no model. All else did, whoever chose it: also a session's, and a shadow's.
_DECISIONS = """
    SELECT decision_id, category, chosen FROM log.decisions
    WHERE ts >= $since AND ts < $until AND mode NOT IN ('pinned', 'cached') AND ($pool IS NULL OR pool = $pool)
"""
# What came of a decision is younger than it, so a decision's time also bounds what has to be read of other tables.
_CALLS = f"""
    SELECT o.model, d.category, o.latency_s, o.cost_usd, o.status = 'ok' AS answered,
           o.status = 'timeout' OR (o.status = 'error' AND coalesce(o.http_status NOT IN {_BLAMELESS}, true)) AS failed
    FROM log.outcomes o JOIN ({_DECISIONS}) d USING (decision_id) WHERE o.ts >= $since
"""
# The feedback in force, and the model whose answer it speaks of: the last attempt's. A failed call has none to grade.
_FEEDBACK = f"""
    SELECT coalesce(a.last.model, d.chosen) AS model, d.category, f.last.quality AS quality
    FROM ({_DECISIONS}) d
    JOIN (SELECT decision_id, arg_max(struct_pack(
                 quality := quality,
                 imputed := coalesce(list_contains(map_keys(metrics), '{IMPUTED}'), false)), seq) AS last
          FROM log.rewards WHERE ts >= $since GROUP BY decision_id) f USING (decision_id)
    LEFT JOIN (SELECT decision_id, arg_max(struct_pack(model := model, status := status), seq) AS last
               FROM log.outcomes WHERE ts >= $since GROUP BY decision_id) a USING (decision_id)
    WHERE f.last.quality IS NOT NULL AND NOT f.last.imputed AND coalesce(a.last.status, 'ok') = 'ok'
"""
_COUNTED = "count(*) AS {prefix}calls, count_if(failed) AS {prefix}failed"
# Both quantiles in one: each would keep its own list of all values, and three million calls would not fit.
_MEASURED = """
    quantile_cont(latency_s, [0.5, 0.95]) FILTER (answered) AS {prefix}latency_quantiles_s,
    count(latency_s) FILTER (answered) AS {prefix}latency_count,
    avg(cost_usd) AS {prefix}cost_mean_usd, count(cost_usd) AS {prefix}cost_count
"""
_GRADED = "sum(quality) AS {prefix}sum, count(quality) AS {prefix}count"
_QUERIES = (
    (_GRADES, _GRADED.format(prefix="accuracy_")),
    (_FEEDBACK, _GRADED.format(prefix="quality_")),
    (_CALLS, f"{_COUNTED}, {_MEASURED}".format(prefix="")),
    (_BENCHMARK_CALLS, f"{_COUNTED}, {_MEASURED}".format(prefix="benchmark_")),
)


def read_cells(log: duckdb.DuckDBPyConnection, *, since: float, until: float, pool: str | None) -> list[Cell]:
    """All cells there is anything to say about, from a connection that has the log attached as `log`.

    Decisions made and benchmark results taken in since ≤ ts < until (unix seconds) count, with whatever came of them;
    of decisions those of `pool`, where it is not None. Raises duckdb.Error.
    """
    found: dict[tuple[str, str | None, bool], dict[str, Any]] = {}
    for rows, summed in _QUERIES:
        grouped = f"""
            SELECT model, category, grouping(category) = 1 AS overall, {summed} FROM ({rows})
            GROUP BY GROUPING SETS ((model), (model, category))
        """
        bounds = {"since": since, "until": until} | ({"pool": pool} if "$pool" in rows else {})
        answer = log.execute(grouped, bounds)
        names = [column[0] for column in answer.description or ()]
        for row in answer.fetchall():
            cell = dict(zip(names, row, strict=True))
            found.setdefault((cell["model"], cell["category"], cell["overall"]), {}).update(cell)
    return [Cell(**cell) for cell in found.values()]


def last_result_ts(log: duckdb.DuckDBPyConnection, suite: str) -> float | None:
    """When the youngest result of a suite was taken in, in unix seconds; None without one. Raises duckdb.Error."""
    ((ts,),) = log.execute("SELECT max(ts) FROM log.benchmark_results WHERE suite = ?", [suite]).fetchall()
    return None if ts is None else float(ts)
