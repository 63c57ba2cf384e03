"""How often intervals hold: replay on logs of this project's own policy, made from outcomes whose truth is known.

Each replicate draws prompts with replacement, lets a learning pool route them, and judges fixed policies on its log.
The truth is their mean over all prompts. Knows how replicates are drawn and summed up; prints nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np

from bandit.types import FloatArray, Objective
from benchmarks.limits import TEN
from benchmarks.ope_logs import LoggedTrace
from benchmarks.policy_players import Conditions, new_pool
from benchmarks.policy_streams import Study, contexts_of, study_of
from evaluation.candidates import Stationary
from evaluation.intervals import AnytimeSequence
from evaluation.judgement import BIASED, Standards
from evaluation.logged import LoggedRounds
from evaluation.measures import Measures
from evaluation.replay import replay
from evaluation.rounds import Rounds
from evaluation.simulation import Workload, simulate

__all__ = ["Plan", "replicate", "summary"]

_SLOW_QUANTILE: Final = 0.9
_EVERY: Final = 25  # calls between two looks at the confidence sequence


@dataclass(frozen=True, slots=True)
class Plan:
    """A set, how many calls a log has, and the logging policy's exploration floor."""

    folder: str
    calls: int
    floor: float


@dataclass(frozen=True, slots=True, eq=False)
class _World:
    """A set's outcomes as if every prompt were asked of every model, and what is judged on them."""

    study: Study
    values: dict[str, FloatArray]  # by metric, (n_models, n_prompts)
    measures: Measures
    policies: dict[str, FloatArray]  # by name, (n_prompts, n_models)
    truth: dict[tuple[str, str], float]  # by policy and metric


def replicate(plan: Plan, seed: int) -> list[dict[str, Any]]:
    """One log judged: a row for every policy, metric and estimator."""
    world = _world(plan.folder)
    features, contexts = contexts_of(plan.folder, "category", 0)
    rng = np.random.default_rng(seed)
    study = world.study
    prompts = rng.integers(0, len(contexts), plan.calls)
    workload = Workload(study.models, contexts, prompts, *(study.measured(m)[:, prompts] for m in _OUTCOMES))
    given = Conditions(objective=world.measures.objective or Objective(), exploration_floor=plan.floor)
    trace = simulate(new_pool(study, "pointsman", contexts, features, given), workload, rng=rng)
    log = LoggedTrace.of(workload, trace)
    candidates = [Stationary(name, _Lookup(table[prompts]), world.measures) for name, table in world.policies.items()]
    rows: list[dict[str, Any]] = []
    for judgement in replay(log, candidates, Standards(replicates=500), seed=seed):
        at_any_time = _always_covered(world, log, judgement.spec, world.policies[judgement.spec][prompts])
        for metric, found in judgement.metrics.items():
            truth = world.truth[judgement.spec, metric]
            head = {"policy": judgement.spec, "metric": metric, "truth": truth, "seed": seed}
            if found.cannot_tell is not None:
                rows.append(head | {"refused": True})
            for estimate in found.estimates:
                covered = {i.kind: truth in i for i in estimate.intervals if estimate.estimator not in BIASED}
                widths = {i.kind: i.high - i.low for i in estimate.intervals}
                rows.append(
                    head
                    | {"estimator": estimate.estimator, "error": estimate.value - truth}
                    | {"covered": covered, "width": widths}
                )
        rows += [{"policy": judgement.spec, "sequence": name, "always": held} for name, held in at_any_time.items()]
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """By policy, metric and estimator: bias, RMSE, coverage and width by kind of interval, and how often refused.

    Rows of kind `always` say in which share of the logs a confidence sequence held at every time.
    """
    grouped: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    refused: dict[tuple[str, str], int] = defaultdict(int)
    always: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for row in rows:
        if "always" in row:
            always[row["policy"], row["sequence"]].append(row["always"])
        elif row.get("refused"):
            refused[row["policy"], row["metric"]] += 1
        else:
            grouped[row["policy"], row["metric"], row["estimator"]].append(row)
    lines: list[dict[str, Any]] = []
    for (policy, metric, estimator), found in grouped.items():
        errors = np.array([row["error"] for row in found])
        kinds = found[0]["covered"]
        lines.append(
            {
                "policy": policy,
                "metric": metric,
                "estimator": estimator,
                "answered": len(found),
                "refused": refused[policy, metric],
                "truth": found[0]["truth"],
                "bias": float(errors.mean()),
                "rmse": float(np.sqrt((errors**2).mean())),
                "coverage": {kind: float(np.mean([row["covered"][kind] for row in found])) for kind in kinds},
                "width": {kind: float(np.mean([row["width"][kind] for row in found])) for kind in found[0]["width"]},
            }
        )
    answered = {(line["policy"], line["metric"]) for line in lines}
    lines += [
        {"policy": policy, "metric": metric, "answered": 0, "refused": count}
        for (policy, metric), count in refused.items()
        if (policy, metric) not in answered
    ]
    lines += [
        {"policy": policy, "sequence": name, "logs": len(held), "always_covered": float(np.mean(held))}
        for (policy, name), held in always.items()
    ]
    return lines


_OUTCOMES: Final = ("quality", "cost_usd", "latency_s", "input_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, eq=False)
class _Lookup:
    """A policy as a table (n, K) by the log's rows."""

    table: FloatArray

    def __call__(self, chunk: LoggedRounds) -> FloatArray:
        return self.table[chunk.row]


@cache
def _world(folder: str) -> _World:
    study = study_of(folder, TEN if Path(folder).name == "bfcl" else (), priced=True)
    _, contexts = contexts_of(folder, "category", 0)
    quality, cost, latency = (study.measured(m) for m in _OUTCOMES[:3])
    limit = None if np.isnan(latency).all() else float(np.nanquantile(latency, _SLOW_QUANTILE))
    objective = Objective(quality=1.0, cost=0.2, cost_reference_usd=2.0 * float(np.nanmean(cost)))
    weights = objective.weights
    reward = weights[0] * quality + weights[1] * (1.0 - np.minimum(cost / objective.cost_reference_usd, 1.0))
    values = {"quality": quality, "cost_usd": cost, "reward": reward}
    if limit is not None:
        values["slow"] = np.where(np.isnan(latency), np.nan, (latency > limit).astype(np.float64))
    policies = _policies(reward, [context.category or "" for context in contexts])
    truth = {
        (name, metric): float(np.einsum("pm,mp->p", table, np.nan_to_num(table_of)).mean())
        for name, table in policies.items()
        for metric, table_of in values.items()
    }
    return _World(study, values, Measures(objective=objective, latency_limit_s=limit), policies, truth)


def _policies(reward: FloatArray, categories: list[str]) -> dict[str, FloatArray]:
    """Fixed policies: a soft preference for what is good on the whole, the best by category, two models shared."""
    mean = np.nanmean(reward, axis=1)
    soft = np.exp((mean - mean.max()) / 0.03)
    soft /= soft.sum()
    n, k = reward.shape[1], reward.shape[0]
    best = np.zeros((n, k))
    for category in set(categories):
        rows = np.array([c == category for c in categories])
        best[rows, int(np.nanmean(reward[:, rows], axis=1).argmax())] = 1.0
    two = np.zeros(k)
    two[mean.argsort()[::-1][:2]] = 0.5
    return {
        "soft": np.tile(soft, (n, 1)),
        "by category": 0.9 * best + 0.1 * soft,
        "two models": np.tile(two, (n, 1)),
    }


def _always_covered(world: _World, log: LoggedTrace, policy: str, target: FloatArray) -> dict[str, bool]:
    """Whether the sequences for quality held at every look, of IPS and of DR with the logged predictions."""
    chunk, k = log.rounds, len(log.arms)
    truth = world.truth[policy, "quality"]
    held = {}
    for name, predicted in (("IPS", np.zeros_like(target)), ("DR", np.nan_to_num(chunk.predicted_quality))):
        rounds = Rounds(chunk.chosen, chunk.behaviour, chunk.quality, target, predicted, np.ones(k))
        sequence = AnytimeSequence()
        sums, variances = sequence.add(rounds)
        looks = np.arange(_EVERY - 1, len(chunk), _EVERY)
        low, high = sequence.bounds_at(sums[:, looks], variances[:, looks], np.asarray(looks + 1.0, dtype=np.float64))
        held[name] = bool(((low <= truth) & (truth <= high)).all())
    return held


def plans(data: Path, calls: int) -> list[Plan]:
    """What is run: the service's default floor and five times that. On `bfcl` the default leaves nothing to tell."""
    return [
        Plan(str(data / name), calls, floor) for name, floor in (("mmlu_pro", 0.01), ("mmlu_pro", 0.05), ("bfcl", 0.05))
    ]
