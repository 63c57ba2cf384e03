"""What a player is measured by, and against: figures of a trace, and the choices of those who know the outcomes.

Arithmetic on recorded outcomes, known in hindsight. Nothing here learns or decides online.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.typing import NDArray

from bandit.types import BoolArray, FloatArray
from benchmarks.policy_players import Trace
from benchmarks.policy_streams import Stream

__all__ = ["Figures", "figures", "fixed", "hull", "mixed", "oracle", "uniform", "utilisation"]

Figures = dict[str, float]
_WINDOW = 1000
_HALVINGS = 60


def figures(
    stream: Stream, trace: Trace, *, budget: float | None = None, violating: BoolArray | None = None
) -> Figures:
    """One trace in numbers; NaN where nothing was measured. `violating`: (n_models, n), who breaks a limit then.

    `regret` is left to the scenario, which knows against whom.
    """
    cost, latency = trace.of(stream.cost_usd), trace.of(stream.latency_s)
    out = {
        "quality": _mean(trace.of(stream.quality)),
        "cost_usd_per_call": _mean(cost),
        "p95_latency_s": _p95(latency),
        "violating_share": float("nan")
        if violating is None
        else float(violating[trace.chosen, np.arange(len(stream))].mean()),
        "decisions_per_s": len(stream) / trace.choosing_s if trace.choosing_s > 0 else float("nan"),
    }
    average, worst = utilisation(cost, budget)
    return {**out, "budget_utilisation": average, "worst_window_utilisation": worst}


def utilisation(cost_usd: FloatArray, budget: float | None) -> tuple[float, float]:
    """Mean cost over the budget: of the whole stream, and of its worst 1,000 calls in a row (or all, if fewer)."""
    if budget is None:
        return float("nan"), float("nan")
    total = np.concatenate(([0.0], np.nan_to_num(cost_usd).cumsum()))
    window = min(_WINDOW, len(cost_usd))
    worst = float((total[window:] - total[:-window]).max()) / window
    return _mean(cost_usd) / budget, worst / budget


def fixed(stream: Stream, model: int) -> Trace:
    """One model for every call."""
    return _trace(np.full(len(stream), model, dtype=np.intp))


def mixed(stream: Stream, weights: FloatArray, *, budget: float | None, violating: BoolArray | None = None) -> Figures:
    """What models drawn with fixed `weights`, shape (n_models,) or (n_models, n), are expected to yield.

    A model of weight 0 need not be measured; of the others, means are over what was. The worst window is of expected
    costs, so a mix has none that is worse than its models' order makes it.
    """
    share = np.broadcast_to(weights if weights.ndim == 2 else weights[:, None], stream.quality.shape)

    def expected(values: FloatArray) -> float:
        known = ~np.isnan(values) & (share > 0)
        return float((share[known] * values[known]).sum() / share[known].sum()) if known.any() else float("nan")

    known = ~np.isnan(stream.latency_s) & (share > 0)
    latency, weight = stream.latency_s[known], share[known]
    cost = np.where(share > 0, share * np.nan_to_num(stream.cost_usd), 0.0).sum(axis=0)
    average, worst = utilisation(cost, budget)
    return {
        "quality": expected(stream.quality),
        "cost_usd_per_call": expected(stream.cost_usd),
        "budget_utilisation": average,
        "worst_window_utilisation": worst,
        "p95_latency_s": _weighted_p95(latency, weight),
        "violating_share": float("nan") if violating is None else float((share * violating).sum() / share.sum()),
        "decisions_per_s": float("nan"),
    }


def uniform(stream: Stream) -> FloatArray:
    """Equal weights, shape (n_models,)."""
    return np.full(len(stream.quality), 1.0 / len(stream.quality))


def hull(stream: Stream, budget: float | None) -> FloatArray:
    """Weights of the best mix of two fixed models whose mean cost is within the budget, shape (n_models,).

    Found over all pairs of means; without a budget the best model, and the cheapest where the budget pays for none. It
    knows the stream's own means, which nobody does beforehand.
    """
    quality, cost = stream.means(stream.quality), stream.means(stream.cost_usd)
    weights = np.zeros(len(quality))
    if budget is None:
        weights[int(np.nanargmax(quality))] = 1.0
        return weights
    if not (cost <= budget).any():
        weights[int(np.nanargmin(cost))] = 1.0
        return weights
    best = -np.inf
    for one in np.flatnonzero(cost <= budget):
        for other in np.flatnonzero(~np.isnan(cost)):
            over = cost[other] > budget
            share = (budget - cost[one]) / (cost[other] - cost[one]) if over else 1.0
            value = (1.0 - share) * quality[one] + share * quality[other]
            if value > best:
                best, weights = value, np.zeros(len(quality))
                weights[one] += 1.0 - share
                weights[other] += share
    return weights


def oracle(quality: FloatArray, cost_usd: FloatArray, budget: float | None) -> Trace:
    """Call by call the model of the highest quality − λ·cost, arrays of shape (n_models, n); of equals the cheapest.

    λ is the least that keeps the mean cost within the budget (Lagrangian relaxation, by bisection): the best there
    is but for one call. Where even the cheapest choice costs more, that. A model that was not measured is not chosen.
    """
    known = np.where(np.isnan(quality), -np.inf, quality)
    if budget is None:
        ties = np.where(known >= known.max(axis=0), np.nan_to_num(cost_usd, nan=0.0), np.inf)
        return _trace(ties.argmin(axis=0))
    known, cost = np.where(np.isnan(cost_usd), -np.inf, known), np.nan_to_num(cost_usd)

    def chosen(price: float) -> NDArray[np.intp]:
        worth = known - price * cost
        # Of the best the cheapest: at λ = 0 a dear answer must be better than a cheap one, not as good.
        return np.asarray(np.where(worth >= worth.max(axis=0) - 1e-12, cost, np.inf).argmin(axis=0))

    def spent(choice: NDArray[np.intp]) -> float:
        return float(np.take_along_axis(cost, choice[None], axis=0).mean())

    low, high = 0.0, 1e3 / max(budget, 1e-12)
    if spent(chosen(low)) <= budget:
        return _trace(chosen(low))
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if spent(chosen(middle)) > budget else (low, middle)
    return _trace(chosen(high))


def _trace(chosen: NDArray[np.intp]) -> Trace:
    return Trace(chosen, np.zeros(len(chosen), dtype=np.bool_), (), 0.0)


def _mean(values: FloatArray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def _p95(values: FloatArray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of no value at all, which is NaN
        return float(np.nanquantile(values, 0.95))


def _weighted_p95(values: FloatArray, weights: FloatArray) -> float:
    """The least value that 95 % of the weight does not pass."""
    if not values.size:
        return float("nan")
    order = values.argsort()
    cumulated = weights[order].cumsum()
    return float(values[order][min(int(cumulated.searchsorted(0.95 * cumulated[-1])), values.size - 1)])
