"""What a way of choosing models yields on the calls of a workload: quality, cost, latency, reward, limits.

The same figures for a pool that learned, for each model alone, for the uniform and for the oracle, so that they can be
compared. Plain arithmetic on arrays; knows nothing of how anybody chose.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandit.types import BoolArray, Constraints, FloatArray, Objective
from evaluation.simulation import Workload

__all__ = ["Figures", "breaking", "figures_of", "oracle", "rewards"]

_P95_RATE = 0.05
Chosen = NDArray[np.intp] | None


@dataclass(frozen=True, slots=True)
class Figures:
    """Means over calls; NaN where nothing is known of it, or no such limit is set.

    `usd_per_1000`: cost of 1,000 calls. `reward`: by the pool's objective, of the calls where it is known.
    `slow_share`: calls over the p95 limit. `breaking_share`: calls to models that break a limit on these calls.
    """

    quality: float
    usd_per_1000: float
    p50_latency_s: float
    p95_latency_s: float
    reward: float
    slow_share: float
    breaking_share: float


def figures_of(
    workload: Workload, objective: Objective, constraints: Constraints, part: NDArray[np.intp], chosen: Chosen
) -> Figures:
    """The figures of choosing row `chosen` (n,) for each call (-1: refused, left out), or (None) each row equally.

    `part` (n,): limits are judged within each part by itself.
    """
    breaks = breaking(workload, constraints, part)
    if chosen is None:
        calls, rows = np.tile(np.arange(len(workload)), len(workload.models)), None
    else:
        calls = np.flatnonzero(chosen >= 0)
        rows = chosen[calls]

    def of(values: FloatArray) -> FloatArray:
        return values.ravel() if rows is None else np.asarray(values[rows, calls])

    quality, cost_usd, latency_s = of(workload.quality), of(workload.cost_usd), of(workload.latency_s)
    known_s = latency_s[~np.isnan(latency_s)]
    limit_s = constraints.p95_latency_s
    limited = limit_s is not None or constraints.min_accuracy is not None
    p50, p95 = np.quantile(known_s, (0.5, 0.95)) if known_s.size else (np.nan, np.nan)
    return Figures(
        quality=_mean(quality),
        usd_per_1000=1000.0 * _mean(cost_usd),
        p50_latency_s=float(p50),
        p95_latency_s=float(p95),
        reward=_mean(rewards(objective, quality, cost_usd, latency_s)),
        slow_share=_mean(known_s > limit_s) if limit_s is not None else np.nan,
        breaking_share=_mean(of(breaks.astype(np.float64))) if limited else np.nan,
    )


def rewards(objective: Objective, quality: FloatArray, cost_usd: FloatArray, latency_s: FloatArray) -> FloatArray:
    """`bandit.scorer.reward` of many calls at once, NaN where a part that carries weight is unknown."""
    weight_q, weight_c, weight_l = objective.weights
    total = np.zeros(quality.shape)
    for weight, value in (
        (weight_q, quality),
        (weight_c, 1.0 - np.minimum(cost_usd / objective.cost_reference_usd, 1.0)),
        (weight_l, 1.0 - np.minimum(latency_s / objective.latency_reference_s, 1.0)),
    ):
        if weight > 0:
            total = total + weight * value
    return total


def breaking(workload: Workload, constraints: Constraints, part: NDArray[np.intp]) -> BoolArray:
    """Whether each model, over all calls of a part, is slower or less accurate than the limits: shape (K, n)."""
    breaks = np.zeros(workload.quality.shape, dtype=np.bool_)
    for at in _parts(part):
        over = np.zeros(len(workload.models), dtype=np.bool_)
        if constraints.p95_latency_s is not None:
            latency_s = workload.latency_s[:, at]
            slow = np.where(np.isnan(latency_s), np.nan, latency_s > constraints.p95_latency_s)
            over |= _row_means(slow) > _P95_RATE
        if constraints.min_accuracy is not None:
            over |= _row_means(workload.quality[:, at]) < constraints.min_accuracy
        breaks[:, at] = over[:, None]
    return breaks


def oracle(
    workload: Workload, objective: Objective, constraints: Constraints, part: NDArray[np.intp]
) -> NDArray[np.intp]:
    """The row of each call's best model, known in hindsight, among those that keep the limits; all, where none does.

    Shape (n,), -1 where no model's reward is known.
    """
    reward = rewards(objective, workload.quality, workload.cost_usd, workload.latency_s)
    breaks = breaking(workload, constraints, part)
    usable = ~(breaks & ~breaks.all(axis=0)) & ~np.isnan(reward)
    best = np.where(usable, reward, -np.inf).argmax(axis=0)
    return np.where(usable.any(axis=0), best, -1)


def _parts(part: NDArray[np.intp]) -> Iterator[BoolArray]:
    for value in np.unique(part):
        yield part == value


def _mean(values: NDArray[np.float64] | BoolArray) -> float:
    known = values[~np.isnan(values)] if values.dtype != np.bool_ else values
    return float(known.mean()) if known.size else float("nan")


def _row_means(values: FloatArray) -> FloatArray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # a row without any value has no mean: NaN
        return np.asarray(np.nanmean(values, axis=1))
