"""A report's figures, all of them, as plain data: what `pointsman report --json` writes and what the page is made from.

Puts the counted and the estimated figures of one selection together. Knows no HTML, and no file but the open log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import isfinite
from typing import Any, Final

from evaluation import report_figures
from evaluation.candidates import Candidate
from evaluation.judgement import Standards
from evaluation.logs import Log
from evaluation.measures import Measures
from evaluation.report_calibration import calibration
from evaluation.report_judged import estimated
from evaluation.report_standing import standing
from evaluation.report_tables import left_out, make_tables, rows_of
from evaluation.selection import LEFT_OUT, SelectedRounds, Selection

__all__ = ["FORM", "report_data"]

FORM: Final = 1
"""The version of the data's shape."""


def report_data(
    log: Log,
    selection: Selection,
    *,
    limits: Mapping[str, float | None],
    measures_of: Callable[[SelectedRounds], Measures],
    others: Callable[[SelectedRounds, Measures], Sequence[Candidate]],
    standards: Standards,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of a pool's decisions; NaN and infinity become None, times are unix seconds.

    `limits`: p95_latency_s and min_accuracy where they are known. `selection.latest` bounds what is estimated
    off-policy, everything else counts all decisions. `measures_of` and `others` (the candidates to judge) are asked
    with the decisions that are judged. Raises InvalidInput.
    """
    make_tables(log, replace(selection, latest=None))
    uncounted = left_out(log, selection)
    totals = report_figures.totals(log)
    names = tuple(totals["models"])
    from_ts, to_ts = totals["from_ts"], totals["to_ts"]
    width_s = report_figures.bin_width_s(from_ts, to_ts)
    found: dict[str, Any] = _plain(
        {
            "form": FORM,
            "made_ts": time.time(),
            "selection": {
                "logs": list(log.names),
                "pool": selection.pool,
                "where": selection.where,
                "since_ts": selection.since_ts,
                "until_ts": selection.until_ts,
                "left_out_by_mode": uncounted,
                "left_out_because": {mode: LEFT_OUT[mode] for mode in uncounted},
                "limits": dict(limits),
                **totals,
            },
            "spend": report_figures.spend(log, width_s),
            "models": report_figures.models(log, names),
            "latency": report_figures.latency(log, width_s, limits.get("p95_latency_s")),
            "failures": report_figures.failures(log),
            "standing": standing(log, names, from_ts, to_ts),
            "not_predicted_best": _explored(log),
            "calibration": calibration(log, names),
            "traffic": report_figures.traffic(log, width_s),
            "feedback": report_figures.missing_feedback(log),
            **estimated(log, selection, measures_of, others, standards, seed=seed),
        }
    )
    return found


def _explored(log: Log) -> dict[str, Any]:
    """How many calls went to another model than the feasible one of best predicted quality, or than the likeliest."""
    (row,) = rows_of(
        log,
        "SELECT count(*) FILTER (less_good) AS not_best, count(less_good) AS calls,"
        " count(*) FILTER (less_likely) AS not_likeliest, count(less_likely) AS drawn FROM calls WHERE drawn",
    )
    return {
        "best_quality": {"calls": row["calls"], "share": row["not_best"] / row["calls"] if row["calls"] else None},
        "most_likely": {"calls": row["drawn"], "share": row["not_likeliest"] / row["drawn"] if row["drawn"] else None},
    }


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not isfinite(value) else value
