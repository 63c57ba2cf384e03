"""What a run of `evaluate` found, per model and category, as figures for programs.

Pure arithmetic on results. How it looks for people is `benchmark_view`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from bandit.intervals import wilson
from evaluation.benchmark_state import Result

__all__ = ["figures", "model_figures"]


def model_figures(models: Sequence[str], results: Iterable[Result]) -> list[dict[str, Any]]:
    """Per model, in the order given: its figures over all items, and in `categories` over those of each."""
    by_model: dict[str, list[Result]] = {model: [] for model in models}
    for result in results:
        by_model[result.model].append(result)
    listed = []
    for model, of_model in by_model.items():
        categories = sorted({result.category for result in of_model if result.category is not None})
        split = [{"category": c, **figures([r for r in of_model if r.category == c])} for c in categories]
        listed.append({"model": model, **figures(of_model), "categories": split})
    return listed


def figures(results: Sequence[Result]) -> dict[str, Any]:
    """Accuracy with its 95 % Wilson interval, latency quantiles, mean known cost, and errors by code.

    Accuracy is that of graded answers; what failed or could not be graded is in `errors` and in nothing else. A judge's
    cost is in `judge_cost_usd`, the sum, not in the cost per call.
    """
    qualities = [result.quality for result in results if result.quality is not None]
    latencies_s = [result.latency_s for result in results if result.latency_s is not None]
    costs_usd = [result.cost_usd for result in results if result.cost_usd is not None]
    codes = [result.error or "unknown" for result in results if result.status != "graded"]
    low, high = wilson(sum(qualities), len(qualities))
    return {
        "accuracy": {
            "mean": float(np.mean(qualities)) if qualities else None,
            "low": low,
            "high": high,
            "samples": len(qualities),
        },
        "latency_s": {
            "p50": _quantile(latencies_s, 0.5),
            "p95": _quantile(latencies_s, 0.95),
            "samples": len(latencies_s),
        },
        "cost_usd_per_call": {"mean": float(np.mean(costs_usd)) if costs_usd else None, "samples": len(costs_usd)},
        "cost_usd": float(sum(costs_usd)),
        "judge_cost_usd": float(sum(result.judge_cost_usd for result in results)),
        "errors": {code: codes.count(code) for code in sorted(set(codes))},
    }


def _quantile(values: Sequence[float], q: float) -> float | None:
    """Linear between order statistics, as DuckDB's quantile_cont."""
    return float(np.quantile(values, q)) if values else None
