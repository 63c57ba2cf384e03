"""What the log says about a candidate, from the sums of its tallies: estimates with intervals, or that it cannot tell.

Numbers only: how they are printed is `evaluation.replay_view`'s matter, how they were gathered `evaluation.replay`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf, sqrt
from statistics import NormalDist
from typing import Final

import numpy as np

from bandit.types import FloatArray
from evaluation.estimators import TUNED
from evaluation.estimators.slope import slope
from evaluation.intervals import Interval, empirical_bernstein
from evaluation.tally import LOGGED, MORE_ROBUST, THRESHOLDS, Tally

__all__ = [
    "BIASED",
    "HEADLINE",
    "Estimate",
    "GroupJudgement",
    "Judgement",
    "MetricJudgement",
    "Standards",
    "judge_metric",
]

HEADLINE: Final = "DR"
_SHOWN: Final = ("DM", "IPS", "SNIPS", "clipped IPS", HEADLINE, "SNDR", "Switch-DR", "DRos", MORE_ROBUST)
BIASED: Final = ("DM", "clipped IPS", "Switch-DR", "DRos")
"""Estimators that trade bias for variance: their intervals are around their own expectation, not around the truth."""
_WIDTH_Z: Final = 1.96  # of the deviation bounds that tuning compares


@dataclass(frozen=True, slots=True)
class Standards:
    """When an answer is given, and how sure it is.

    `min_effective_samples`: below it the log cannot tell. `max_gap`: nor where more than this share of the candidate's
    choices went to models that could not be drawn. `alpha`: one minus the intervals' confidence. `replicates` of the
    bootstrap.
    """

    min_effective_samples: float = 200.0
    max_gap: float = 0.01
    alpha: float = 0.05
    replicates: int = 1_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """An estimator's value with its intervals; `threshold`: the one that was chosen, of a tuned estimator.

    `rounds`: how many it rests on, where that is fewer than all.
    """

    estimator: str
    value: float
    intervals: tuple[Interval, ...] = ()
    threshold: float | None = None
    rounds: int | None = None


@dataclass(frozen=True, slots=True)
class GroupJudgement:
    """The headline estimate within one category or tier, or why there is none."""

    group: str
    rounds: int
    effective_samples: float
    logged: float
    estimate: Estimate | None
    difference: Interval | None
    cannot_tell: str | None


@dataclass(frozen=True, slots=True)
class MetricJudgement:
    """One metric under one candidate. `logged`: its mean as it was, with an interval.

    `difference`: the headline estimate minus `logged`, bootstrapped together. Where `cannot_tell` says why, there are
    no estimates.
    """

    metric: str
    observed: int
    effective_samples: float
    largest_weight: float
    logged: Estimate
    estimates: tuple[Estimate, ...]
    difference: Estimate | None
    groups: Mapping[str, tuple[GroupJudgement, ...]]
    cannot_tell: str | None

    @property
    def headline(self) -> Estimate | None:
        """The estimate to look at first."""
        return next((e for e in self.estimates if e.estimator == HEADLINE), None)


@dataclass(frozen=True, slots=True)
class Judgement:
    """One candidate. Support over all rounds, whatever was observed: `effective_samples`, weights π/p and gaps."""

    spec: str
    rounds: int
    effective_samples: float
    largest_weight: float
    mean_weight: float
    gap_share: float
    gaps: Mapping[str, float]
    metrics: Mapping[str, MetricJudgement]
    notes: tuple[str, ...] = field(default=())

    @property
    def cannot_tell(self) -> str | None:
        """Why there is no answer, of the first metric that has data and none; None where all are answered."""
        return next((m.cannot_tell for m in self.metrics.values() if m.cannot_tell is not None), None)


def judge_metric(
    metric: str,
    tally: Tally,
    standards: Standards,
    draws: FloatArray,
    groups: Mapping[str, tuple[str, ...]],
    *,
    bounds: tuple[float, float],
    anytime: Mapping[str, Interval],
) -> MetricJudgement:
    """The estimates of one metric, or why there are none.

    `draws` (replicates, blocks): of the bootstrap. `groups`: names by kind (category, tier), in the order of the
    tally's groups from 1 on. `bounds` of the metric's values. `anytime`: intervals of the confidence sequence, by
    estimator.
    """
    support = tally.support
    reason = _reason(tally, 0, standards)
    estimates: list[Estimate] = []
    difference = None
    if reason is None:
        for name, threshold in _chosen(tally):
            sums = tally.blocks[name, threshold]
            intervals = [_bootstrap(sums, tally.counts[0], draws, standards.alpha, _stretch(tally, name, draws))]
            if name in ("IPS", HEADLINE) or name in TUNED:
                intervals.append(_bernstein(tally, name, threshold, bounds, standards.alpha))
            if name in anytime:
                intervals.append(anytime[name])
            value = _value(tally.blocks[name, threshold].sum(axis=1), tally.counts[0].sum())
            tuned = threshold if name in TUNED else None
            estimates.append(Estimate(name, value, tuple(intervals), tuned))
        blocks, stretch = tally.blocks, _stretch(tally, HEADLINE, draws)
        difference = _difference(
            blocks[HEADLINE, inf], blocks[LOGGED, inf], tally.counts[0], draws, standards, stretch=stretch
        )
    logged = tally.blocks[LOGGED, inf]
    return MetricJudgement(
        metric=metric,
        observed=int(support.observed[0]),
        effective_samples=float(support.effective_samples[0]),
        largest_weight=float(support.largest[0]),
        logged=Estimate(
            LOGGED,
            _value(logged.sum(axis=1), tally.counts[0].sum()),
            (_bootstrap(logged, tally.counts[0], draws, standards.alpha),),
        ),
        estimates=tuple(estimates),
        difference=difference,
        groups=_groups(tally, standards, draws, groups),
        cannot_tell=reason,
    )


def _reason(tally: Tally, group: int, standards: Standards) -> str | None:
    support = tally.support
    effective = min(float(support.effective_samples[group]), float(support.expected_effective_samples[group]))
    gap = float(support.gap_share[group])
    if not support.observed[group]:
        return "no value of it is in the log"
    if gap > standards.max_gap:
        return (
            f"{gap:.1%} of the policy's choices are models that the log could not have drawn there, or never saw"
            f" graded (at most {standards.max_gap:.0%})"
        )
    if effective < standards.min_effective_samples:
        return (
            f"the effective sample size is {effective:,.0f} of {support.observed[group]:,.0f} decisions, below"
            f" {standards.min_effective_samples:,.0f}: the log's choices are too unlike the policy's"
        )
    return None


def _chosen(tally: Tally) -> list[tuple[str, float]]:
    """Estimators with their thresholds, in the order they are shown."""
    n = float(tally.counts[0].sum())
    shown = [name for name in _SHOWN if name != MORE_ROBUST or tally.blocks[name, inf].any()]
    return [(name, _tuned(tally, name, n) if name in TUNED else inf) for name in shown]


def _tuned(tally: Tally, name: str, n: float) -> float:
    values = [_value(tally.blocks[name, threshold].sum(axis=1), n) for threshold in THRESHOLDS]
    widths = [_WIDTH_Z * sqrt(tally.variance(name, threshold) / n) for threshold in THRESHOLDS]
    return THRESHOLDS[slope(values, widths)]


def _value(sums: FloatArray, count: float) -> float:
    direct, residual, weight = (float(x) for x in sums)
    return float(direct / count + (residual / weight if weight > 0 else residual / count))


def _values(sums: FloatArray, counts: FloatArray, draws: FloatArray) -> FloatArray:
    """The estimate in each replicate, shape (replicates,); sums (3, blocks), counts (blocks,)."""
    n, direct, residual, weight = (draws @ np.vstack((counts, sums)).T).T
    normaliser = np.where(weight > 0, weight, n) if sums[2].any() else n
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(direct / n + residual / normaliser)


def _bootstrap(sums: FloatArray, counts: FloatArray, draws: FloatArray, alpha: float, stretch: float = 1.0) -> Interval:
    """Normal interval with the standard error of a bootstrap over blocks (Efron, 1979), times `stretch`."""
    return _around(_value(sums.sum(axis=1), counts.sum()), _values(sums, counts, draws), alpha, stretch)


def _difference(
    sums: FloatArray,
    logged: FloatArray,
    counts: FloatArray,
    draws: FloatArray,
    standards: Standards,
    *,
    stretch: float,
) -> Estimate:
    values = _values(sums, counts, draws) - _values(logged, counts, draws)
    value = _value(sums.sum(axis=1), counts.sum()) - _value(logged.sum(axis=1), counts.sum())
    return Estimate(f"{HEADLINE} - {LOGGED}", value, (_around(value, values, standards.alpha, stretch),))


def _around(value: float, replicates: FloatArray, alpha: float, stretch: float) -> Interval:
    half = NormalDist().inv_cdf(1.0 - alpha / 2.0) * stretch * float(np.nanstd(replicates))
    return Interval("bootstrap", value - half, value + half)


def _stretch(tally: Tally, name: str, draws: FloatArray) -> float:
    """By how much the bootstrap's standard error falls short of the one that the logged probabilities imply; ≥ 1.

    Bootstrap alone covers costs of rarely drawn, dear models in 80 of 100 logs of our own policy, with this in 95.
    """
    if name in BIASED:
        return 1.0
    sums, counts = tally.blocks[name, inf], tally.counts[0]
    sampled = float(np.nanstd(_values(sums, counts, draws)))
    expected = sqrt(tally.spread.variance(name, _value(sums.sum(axis=1), counts.sum())) / counts.sum())
    return max(1.0, expected / sampled) if sampled > 0 else 1.0


def _bernstein(tally: Tally, name: str, threshold: float, bounds: tuple[float, float], alpha: float) -> Interval:
    """By the largest term any round could have had: w·r for IPS, Σ π q̂ + w(r − q̂) for the others."""
    span = max(abs(bounds[0]), abs(bounds[1]), bounds[1] - bounds[0])
    largest = min(tally.largest_possible, threshold)
    reach = largest * span if name in ("IPS", "clipped IPS") else (1.0 + 2.0 * largest) * span
    n = int(tally.counts[0].sum())
    value = _value(tally.blocks[name, threshold].sum(axis=1), n)
    found = empirical_bernstein(value, tally.variance(name, threshold), n, reach, alpha)
    return Interval(found.kind, max(found.low, bounds[0]), min(found.high, bounds[1]))


def _groups(
    tally: Tally, standards: Standards, draws: FloatArray, groups: Mapping[str, tuple[str, ...]]
) -> dict[str, tuple[GroupJudgement, ...]]:
    found: dict[str, tuple[GroupJudgement, ...]] = {}
    at = 1
    for kind, names in groups.items():
        judged = [_group(tally, at + i, name, standards, draws) for i, name in enumerate(names)]
        found[kind] = tuple(judgement for judgement in judged if judgement.rounds)
        at += len(names)
    return found


def _group(tally: Tally, index: int, name: str, standards: Standards, draws: FloatArray) -> GroupJudgement:
    reason = _reason(tally, index, standards)
    counts = tally.counts[index]
    sums, logged = tally.grouped[HEADLINE][:, index], tally.grouped[LOGGED][:, index]
    total = float(counts.sum())
    estimate = difference = None
    if reason is None:
        stretch = _stretch(tally, HEADLINE, draws)
        interval = _bootstrap(sums, counts, draws, standards.alpha, stretch)
        estimate = Estimate(HEADLINE, _value(sums.sum(axis=1), total), (interval,))
        difference = _difference(sums, logged, counts, draws, standards, stretch=stretch).intervals[0]
    return GroupJudgement(
        group=name,
        rounds=int(total),
        effective_samples=float(tally.support.effective_samples[index]),
        logged=_value(logged.sum(axis=1), total) if logged[2].any() else float("nan"),
        estimate=estimate,
        difference=difference,
        cannot_tell=reason,
    )
