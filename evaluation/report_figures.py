"""The figures of a report that are counted, not estimated: spend, quality, latency, failures, traffic, feedback.

Sums up the tables of `evaluation.report_tables` in SQL, to a bounded number of points; a model's figures by category
are those of the service's accuracy matrix. Plain data; knows nothing of how it is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any, Final

from bandit.intervals import wilson
from evaluation.logs import Log
from evaluation.report_tables import rows_of

__all__ = ["bin_width_s", "failures", "latency", "missing_feedback", "models", "spend", "totals", "traffic"]

MOST_BINS: Final = 48
_WIDTHS_S: Final = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10_800, 21_600, 43_200),
    *(86_400, 2 * 86_400, 7 * 86_400, 14 * 86_400, 28 * 86_400),
)
_MEASURED: Final = """
    count(*) AS {0}calls, count(*) FILTER (failed) AS {0}failed,
    quantile_cont(latency_s, 0.5) FILTER (answered) AS {0}p50,
    quantile_cont(latency_s, 0.95) FILTER (answered) AS {0}p95,
    quantile_cont(latency_s, 0.99) FILTER (answered) AS {0}p99, count(latency_s) FILTER (answered) AS {0}timed,
    avg(cost_usd) AS {0}usd, count(cost_usd) AS {0}priced
"""
_BY_MODEL: Final = (
    "SELECT model, category, grouping(category) = 1 AS overall, {sums} FROM ({rows})"
    " GROUP BY GROUPING SETS ((model), (model, category))"
)
_CELLS: Final = (
    (
        "SELECT model, category, quality FROM benchmarks WHERE graded AND latest",
        "sum(quality) AS accuracy_sum, count(quality) AS accuracy_count",
    ),
    (
        "SELECT model, category, quality FROM answers WHERE gradable AND quality IS NOT NULL",
        "sum(quality) AS quality_sum, count(quality) AS quality_count",
    ),
    ("SELECT model, category, latency_s, cost_usd, answered, failed FROM attempts", _MEASURED.format("")),
    (
        (
            "SELECT model, category, latency_s, cost_usd, error IS NULL AS answered, error IS NOT NULL AS failed"
            " FROM benchmarks"
        ),
        _MEASURED.format("benchmark_"),
    ),
)


def bin_width_s(from_ts: float, to_ts: float) -> float:
    """The width of a bin of time: a round one, at most 48 of them."""
    span = max(to_ts - from_ts, 0.0)
    return float(next((w for w in _WIDTHS_S if span / w < MOST_BINS), _WIDTHS_S[-1] * (1 + span // 1e8)))


def totals(log: Log) -> dict[str, Any]:
    """How many decisions, from when to when, of which models, and the mean of the feedback in force."""
    (calls,) = rows_of(
        log, "SELECT count(*) FILTER (NOT beside) AS decisions, min(ts) AS from_ts, max(ts) AS to_ts FROM calls"
    )
    (told,) = rows_of(
        log, "SELECT sum(quality) AS total, count(quality) AS n FROM answers WHERE gradable AND NOT beside"
    )
    names = rows_of(log, "SELECT DISTINCT unnest(arms) AS arm FROM calls ORDER BY arm")
    return calls | {"quality": _share(told["total"], told["n"]), "models": [row["arm"] for row in names]}


def spend(log: Log, width_s: float) -> dict[str, Any]:
    """What the calls cost over all their attempts, by model and over time; a call is of those whose cost is known.

    A call that failed without a known cost has none.
    """
    (total,) = rows_of(
        log,
        "SELECT count(*) AS attempts, count(cost_usd) AS priced, sum(cost_usd) AS usd,"
        " count(*) FILTER (cost_usd IS NULL AND answered) AS unpriced FROM attempts",
    )
    (calls,) = rows_of(
        log,
        "SELECT (SELECT count(*) FROM calls) AS n, count(*) FILTER (usd IS NOT NULL OR failed) AS known FROM ("
        " SELECT sum(cost_usd) AS usd, arg_max(failed, attempt) AS failed FROM attempts GROUP BY part, decision_id)",
    )
    by_model = list(
        rows_of(
            log,
            "SELECT model, count(*) AS calls, count(cost_usd) AS priced, sum(cost_usd) AS usd, avg(cost_usd) AS"
            " usd_per_call FROM attempts GROUP BY model ORDER BY usd DESC NULLS LAST, calls DESC, model",
        )
    )
    usd = total["usd"]
    for row in by_model:
        row["share_of_spend"] = row["usd"] / usd if usd and row["usd"] is not None else None
        row["share_of_attempts"] = row["calls"] / total["attempts"]
    over_time = list(
        rows_of(
            log,
            "SELECT floor(ts / $width) * $width AS ts, count(*) AS calls, coalesce(sum(cost_usd), 0) AS usd"
            " FROM attempts GROUP BY ALL ORDER BY 1",
            {"width": width_s},
        )
    )
    running = 0.0
    for row in over_time:
        running += row["usd"]
        row["cumulated_usd"] = running
    return {
        "usd": usd,
        "calls": calls["n"],
        "calls_with_cost": calls["known"],
        "usd_per_call": usd / calls["known"] if usd is not None else None,
        "answers_without_cost": total["unpriced"],
        "bin_s": width_s,
        "by_model": by_model,
        "over_time": over_time if usd is not None else [],
    }


def models(log: Log, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row a model, in the order of `names` and then of whatever else is in the log: its cell in all, and by category.

    The same figures as `GET /admin/matrix`: accuracy from benchmarks, quality from feedback, each with Wilson's
    interval at 95 %, and calls, failures, latency and cost of attempts.
    """
    found: dict[str, dict[tuple[bool, str | None], dict[str, Any]]] = {name: {} for name in names}
    for rows, sums in _CELLS:
        for row in rows_of(log, _BY_MODEL.format(rows=rows, sums=sums)):
            of_model = found.setdefault(row["model"], {})
            of_model.setdefault((row["overall"], row["category"]), {}).update(row)
    return [
        {
            "model": name,
            "overall": _cell(cells.get((True, None), {})),
            "categories": [
                {"category": category} | _cell(cell)
                for (overall, category), cell in sorted(cells.items(), key=lambda item: item[0][1] or "")
                if not overall
            ],
        }
        for name, cells in found.items()
    ]


def latency(log: Log, width_s: float, limit_s: float | None) -> dict[str, Any]:
    """p50, p95 and p99 of answered attempts by model over time, and (with a limit) the share of slow calls."""
    slow = "NULL" if limit_s is None else "failed OR (answered AND latency_s > $limit)"
    known = "failed OR (answered AND latency_s IS NOT NULL)"
    given = {} if limit_s is None else {"limit": limit_s}
    over_time = rows_of(
        log,
        "SELECT floor(ts / $width) * $width AS ts, model, quantile_cont(latency_s, 0.5) AS p50,"
        " quantile_cont(latency_s, 0.95) AS p95, quantile_cont(latency_s, 0.99) AS p99, count(*) AS samples"
        " FROM attempts WHERE answered AND latency_s IS NOT NULL GROUP BY ALL ORDER BY model, 1",
        {"width": width_s},
    )
    by_model = rows_of(
        log,
        f"SELECT model, count(*) FILTER ({known}) AS calls, count(*) FILTER ({slow}) AS slow,"  # noqa: S608 - constants
        f" quantile_cont(latency_s, 0.5) FILTER (answered) AS p50, quantile_cont(latency_s, 0.95) FILTER (answered) AS"
        f" p95, quantile_cont(latency_s, 0.99) FILTER (answered) AS p99, count(latency_s) FILTER (answered) AS samples"
        f" FROM attempts GROUP BY GROUPING SETS ((model), ()) ORDER BY model NULLS FIRST",
        given,
    )
    rows = [row | {"slow": _share(row["slow"] if limit_s else None, row["calls"])} for row in by_model]
    return {
        "limit_s": limit_s,
        "bin_s": width_s,
        "overall": next((row for row in rows if row["model"] is None), None),
        "by_model": [row for row in rows if row["model"] is not None],
        "over_time": list(over_time),
    }


def failures(log: Log) -> dict[str, Any]:
    """Attempts that the model is to blame for, by model and by what they were."""
    by_model = [
        {"model": row["model"], "attempts": row["n"], "cancelled": row["cancelled"]} | _share(row["failed"], row["n"])
        for row in rows_of(
            log,
            "SELECT model, count(*) AS n, count(*) FILTER (failed) AS failed, count(*) FILTER (status = 'cancelled') AS"
            " cancelled FROM attempts GROUP BY model ORDER BY failed DESC, model",
        )
    ]
    kinds = rows_of(
        log,
        "SELECT model, status, http_status, error, count(*) AS attempts, bool_or(failed) AS blamed FROM attempts"
        " WHERE status <> 'ok' GROUP BY ALL ORDER BY attempts DESC, model, status, http_status, error LIMIT 30",
    )
    (told,) = rows_of(
        log,
        "SELECT count(*) AS decisions, count(*) FILTER (model <> chosen) AS with_fallback,"
        " count(*) FILTER (attempts > 0 AND NOT gradable) AS without_answer,"
        " count(*) FILTER (attempts = 0) AS without_outcome FROM answers WHERE NOT beside",
    )
    return told | {"by_model": by_model, "kinds": list(kinds)}


def traffic(log: Log, width_s: float) -> dict[str, Any]:
    """Decisions by the model they chose, over time; shadows of others are not counted."""
    over_time = rows_of(
        log,
        "SELECT floor(ts / $width) * $width AS ts, chosen AS model, count(*) AS calls FROM calls"
        " WHERE NOT beside GROUP BY ALL ORDER BY 1, model",
        {"width": width_s},
    )
    by_model = rows_of(
        log,
        "SELECT chosen AS model, count(*) AS calls, count(*) / (SELECT count(*) FROM calls WHERE NOT beside) AS share"
        " FROM calls WHERE NOT beside GROUP BY 1 ORDER BY calls DESC, model",
    )
    return {"bin_s": width_s, "by_model": list(by_model), "over_time": list(over_time)}


def missing_feedback(log: Log) -> dict[str, Any]:
    """Of answered calls, how many have no feedback, an assumed one left out of those who have."""
    rows = [
        {"model": row["model"], "answered": row["n"], "with_feedback": row["told"], "assumed": row["imputed"]}
        | {"missing": _share(row["n"] - row["told"], row["n"])}
        for row in rows_of(
            log,
            "SELECT model, count(*) AS n, count(quality) AS told, count(*) FILTER (imputed) AS imputed FROM answers"
            " WHERE gradable AND NOT beside GROUP BY GROUPING SETS ((model), ()) ORDER BY model NULLS FIRST",
        )
    ]
    return {
        "overall": next((row for row in rows if row["model"] is None), None),
        "by_model": [row for row in rows if row["model"] is not None],
    }


def _cell(cell: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "accuracy": _graded(cell, "accuracy"),
        "quality": _graded(cell, "quality"),
        **_measured(cell, ""),
        **{f"benchmark_{name}": value for name, value in _measured(cell, "benchmark_").items()},
    }


def _measured(cell: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    quantiles = {name: cell.get(f"{prefix}{name}") for name in ("p50", "p95", "p99")}
    return {
        "calls": cell.get(f"{prefix}calls", 0),
        "failed": cell.get(f"{prefix}failed", 0),
        "latency_s": quantiles | {"samples": cell.get(f"{prefix}timed", 0)},
        "cost_usd_per_call": {"mean": cell.get(f"{prefix}usd"), "samples": cell.get(f"{prefix}priced", 0)},
    }


def _graded(cell: Mapping[str, Any], name: str) -> dict[str, Any]:
    count = cell.get(f"{name}_count", 0)
    return _share(cell.get(f"{name}_sum"), count)


def _share(total: float | None, count: int) -> dict[str, Any]:
    """A mean of grades, or a share, with Wilson's interval at 95 %; all None where there is nothing to divide."""
    if not count or total is None or not isfinite(total):
        return {"mean": None, "low": None, "high": None, "samples": count if total is not None else 0}
    total = min(float(total), float(count))  # a sum may round upwards
    low, high = wilson(total, count)
    return {"mean": total / count, "low": low, "high": high, "samples": count}
