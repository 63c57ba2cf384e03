"""A change judged from a log and then made: the replayed estimate of a changed pool beside what the pool then yields.

One log of a pool on recorded outcomes. Each change is judged on the log's second half, and then made: the changed pool
goes on from what the log has taught it, as a service does that is restarted with another configuration, and meets the
second half's calls with other chance. Knows which changes; prints nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bandit.pool import Pool
from bandit.types import Constraints, Objective, Price
from benchmarks.limits import TEN
from benchmarks.ope_logs import LoggedTrace
from benchmarks.policy_players import Conditions, new_pool
from benchmarks.policy_streams import Study, contexts_of, study_of
from evaluation.judgement import Judgement, Standards
from evaluation.learning import Learning
from evaluation.measures import Measures
from evaluation.replay import replay
from evaluation.simulation import Trace, Workload, simulate

__all__ = ["changes", "judged_and_made"]

_OUTCOMES: Final = ("quality", "cost_usd", "latency_s", "input_tokens", "output_tokens")
_METRICS: Final = ("quality", "cost_usd", "reward")


@dataclass(frozen=True, slots=True)
class _Change:
    """Conditions of the changed pool, and prices times a factor by model."""

    given: Conditions
    dearer: dict[str, float]


def changes(study: Study, base: Conditions, typical_usd: float) -> dict[str, _Change]:
    """What is changed, by name; `typical_usd`: what a call of the log cost."""
    goal = base.objective
    dear = study.models[int(np.nanargmax(np.nanmean(study.measured("quality"), axis=1)))]
    found = {
        "cost weighs 1.2 times as much": _Change(replace(base, objective=replace(goal, cost=1.2 * goal.cost)), {}),
        "cost weighs twice": _Change(replace(base, objective=replace(goal, cost=2 * goal.cost)), {}),
        "cost weighs nothing": _Change(replace(base, objective=replace(goal, cost=0.0)), {}),
        "budget of 0.9 of the cost": _Change(replace(base, usd_per_request=0.9 * typical_usd), {}),
        "budget of 0.8 of the cost": _Change(replace(base, usd_per_request=0.8 * typical_usd), {}),
        "best model's price times 1.5": _Change(base, {dear: 1.5}),
        "exploration floor doubled": _Change(replace(base, exploration_floor=2 * base.exploration_floor), {}),
        "half-life of 1,000": _Change(replace(base, half_life_requests=1_000.0), {}),
    }
    if not np.isnan(study.measured("latency_s")).all():
        found["latency weighs 0.2"] = _Change(replace(base, objective=replace(goal, latency=0.2)), {})
        found["p95 of 4 s"] = _Change(replace(base, constraints=Constraints(p95_latency_s=4.0)), {})
    return found


def judged_and_made(
    folder: str, calls: int, *, floor: float = 0.05, repeats: int = 5, seed: int = 0
) -> list[dict[str, Any]]:
    """One row a change and metric: the estimate with its interval, what was simulated, and whether that lies within."""
    study = study_of(folder, TEN if Path(folder).name == "bfcl" else (), priced=True)
    features, contexts = contexts_of(folder, "category", 0)
    rng = np.random.default_rng(seed)
    prompts = rng.integers(0, len(contexts), calls)
    workload = Workload(study.models, contexts, prompts, *(study.measured(m)[:, prompts] for m in _OUTCOMES))
    reference = 2.0 * float(np.nanmean(workload.cost_usd))
    base = Conditions(objective=Objective(quality=1.0, cost=0.2, cost_reference_usd=reference), exploration_floor=floor)
    make: Callable[[_Change], Pool] = partial(_pool, study, contexts, features)
    trace = simulate(make(_Change(base, {})), workload, rng=rng)
    log = LoggedTrace.of(workload, trace, first=calls // 2)
    later = _part(workload, slice(calls // 2, calls))
    rows: list[dict[str, Any]] = []
    for name, change in changes(study, base, float(np.nanmean(trace.cost_usd))).items():
        measures = Measures(change.given.objective, _prices(study, change))
        candidate = Learning(name, partial(make, change), measures)
        (judgement,) = replay(log, [candidate], Standards(), seed=seed)
        learned = candidate.state()
        made = []
        for i in range(repeats):
            pool = make(change)
            pool.load(learned)
            run = simulate(pool, _priced(later, study, change), rng=np.random.default_rng([seed, 1 + i]))
            made.append(_realised(run, measures))
        rows += _compared(name, judgement, made)
    return rows


def _compared(name: str, judgement: Judgement, made: list[dict[str, float]]) -> list[dict[str, Any]]:
    rows = []
    for metric in _METRICS:
        found = judgement.metrics[metric]
        simulated = float(np.mean([values[metric] for values in made]))
        row: dict[str, Any] = {"change": name, "metric": metric, "logged": found.logged.value, "simulated": simulated}
        row["effective_samples"] = found.effective_samples
        if found.headline is None:
            rows.append(row | {"cannot_tell": found.cannot_tell})
            continue
        interval = found.headline.intervals[0]
        rows.append(
            row
            | {"estimate": found.headline.value, "low": interval.low, "high": interval.high}
            | {"within": simulated in interval}
        )
    return rows


def _pool(study: Study, contexts: Any, features: Any, change: _Change) -> Pool:
    priced = replace(study, prices=tuple(_prices(study, change).values()))
    return new_pool(priced, "pointsman", contexts, features, change.given)


def _prices(study: Study, change: _Change) -> dict[str, Price | None]:
    prices: dict[str, Price | None] = {}
    for name, price in zip(study.models, study.prices, strict=True):
        factor = change.dearer.get(name, 1.0)
        prices[name] = None if price is None else _times(price, factor)
    return prices


def _times(price: Price, factor: float) -> Price:
    return Price(price.input_per_million * factor, price.output_per_million * factor)


def _part(workload: Workload, calls: slice) -> Workload:
    arrays = {name: getattr(workload, name)[:, calls] for name in _OUTCOMES}
    return replace(workload, prompts=workload.prompts[calls], **arrays)


def _priced(workload: Workload, study: Study, change: _Change) -> Workload:
    """The same calls, dearer where the change says so."""
    factor = np.array([change.dearer.get(name, 1.0) for name in study.models])[:, None]
    return replace(workload, cost_usd=workload.cost_usd * factor)


def _realised(trace: Trace, measures: Measures) -> dict[str, float]:
    goal = measures.objective or Objective()
    parts = (
        trace.quality,
        1.0 - np.minimum(trace.cost_usd / goal.cost_reference_usd, 1.0),
        1.0 - np.minimum(trace.latency_s / goal.latency_reference_s, 1.0),
    )
    reward = np.zeros(len(trace))
    for weight, part in zip(goal.weights, parts, strict=True):
        if weight > 0:
            reward = reward + weight * part
    return {
        "quality": float(np.nanmean(trace.quality)),
        "cost_usd": float(np.nanmean(trace.cost_usd)),
        "reward": float(np.nanmean(reward)),
    }
