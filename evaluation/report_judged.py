"""The figures of a report that are estimated off-policy: each model alone, the price of exploration, given policies.

Puts candidates to `evaluation.replay` and takes from its judgements what the page shows. Where the log cannot tell,
there is a sentence instead of a number.
"""
# ruff: noqa: S608 - statements are built from this file's own constants

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from bandit.errors import InvalidInput
from bandit.types import FloatArray
from evaluation.candidates import Candidate, Stationary, named
from evaluation.judgement import Standards
from evaluation.logged import LoggedRounds
from evaluation.logs import Log
from evaluation.measures import Measures
from evaluation.replay import replay
from evaluation.replay_view import judgement_data
from evaluation.report_tables import rows_of
from evaluation.selection import SelectedRounds, Selection

__all__ = ["MOST_LIKELY", "estimated"]

MOST_LIKELY: Final = "most likely model"
_TOGETHER: Final = 12  # candidates in one replay: each holds some 25 MB of sums
_NO_VALUE: Final = "no value of it is in the log"


def estimated(
    log: Log,
    selection: Selection,
    measures_of: Callable[[SelectedRounds], Measures],
    others: Callable[[SelectedRounds, Measures], Sequence[Candidate]],
    standards: Standards,
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """`single_models`, `exploration`, `policies` (those of `others`), and `judged`: over which decisions.

    Where these cannot be judged together at all (several versions of the features), `cannot_tell` says why. Raises
    InvalidInput for a log or a policy that is wrong.
    """
    try:
        rounds = SelectedRounds(log, selection)
    except InvalidInput as error:
        if error.field != "selection":
            raise
        nothing = {"cannot_tell": str(error), "decisions": 0}
        return {"judged": nothing, "single_models": nothing, "exploration": nothing, "policies": []}
    logged_arms, measures = rounds.arms, measures_of(rounds)
    given = list(
        others(rounds, measures)
    )  # before the named ones: a pool of a configuration may bring models of its own
    alone = [named(f"fixed:{arm}", rounds.arms, measures) for arm in logged_arms]
    unexploring = [named("greedy", rounds.arms, measures), Stationary(MOST_LIKELY, _most_likely, measures)]
    candidates = [*alone, *unexploring, *given]
    found = []
    for i in range(0, len(candidates), _TOGETHER):
        some = replay(rounds, candidates[i : i + _TOGETHER], standards, seed=seed)
        found += [judgement_data(judgement) for judgement in some]
    k = len(alone)
    judged = {
        "cannot_tell": None,
        "decisions": rounds.selected,
        "older_left_out": rounds.dropped,
        "slow_beyond_s": measures.latency_limit_s,
        "from_ts": rounds.from_ts,
        "to_ts": rounds.to_ts,
        "min_effective_samples": standards.min_effective_samples,
    }
    return {
        "judged": judged,
        "single_models": judged | _single_models(log, logged_arms, rounds.selected, found[:k]),
        "exploration": judged | {"policies": [_figures(data) for data in found[k : k + 2]]},
        "policies": found[k + 2 :],
    }


def _most_likely(chunk: LoggedRounds) -> FloatArray:
    """All on the model that was most likely to be drawn: what the policy does if it does not explore."""
    return np.asarray(np.eye(len(chunk.arms))[chunk.behaviour.argmax(axis=1)])


def _single_models(log: Log, arms: tuple[str, ...], calls: int, found: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    predicted = _predicted(log)
    rows = []
    for arm, data in zip(arms, found, strict=True):
        figures = _figures(data)
        saving = figures["metrics"]["cost_usd"]["difference"]
        row = {
            "model": arm,
            "effective_samples": data["effective_samples"],
            **{name: figures["metrics"][name] for name in ("cost_usd", "quality")},
            "saving_usd": None if saving is None else {key: value * calls for key, value in saving.items()},
            "predicted_cost_usd": predicted.get(arm, {}).get("cost_usd"),
            "predicted_quality": predicted.get(arm, {}).get("quality"),
        }
        rows.append(row)
    metrics = _figures(found[0])["metrics"]
    return {"logged": {name: metrics[name]["logged"] for name in ("cost_usd", "quality")}, "models": rows}


def _predicted(log: Log) -> dict[str, dict[str, float | None]]:
    """By model the means of what was predicted of it, at each decision: the direct estimate by the log's own heads."""
    sums: dict[str, dict[str, float]] = {}
    for part in log.parts:
        for row in rows_of(
            log,
            f"SELECT arm, sum(q) FILTER (NOT isnan(q)) AS q, count(q) FILTER (NOT isnan(q)) AS nq,"
            f" sum(c) FILTER (NOT isnan(c)) AS c, count(c) FILTER (NOT isnan(c)) AS nc FROM ("
            f"  SELECT unnest(d.arms) AS arm, unnest(d.predicted_quality) AS q, unnest(d.predicted_cost_usd) AS c"
            f"  FROM {part}.decisions d JOIN rounds r ON r.seq = d.seq AND r.part = $part AND r.selected) GROUP BY arm",
            {"part": part},
        ):
            of_arm = sums.setdefault(row["arm"], dict.fromkeys(("q", "nq", "c", "nc"), 0.0))
            for name in of_arm:
                of_arm[name] += float(row[name] or 0.0)
    return {
        arm: {"quality": s["q"] / s["nq"] if s["nq"] else None, "cost_usd": s["c"] / s["nc"] if s["nc"] else None}
        for arm, s in sums.items()
    }


def _figures(data: Mapping[str, Any]) -> dict[str, Any]:
    """A judgement's headlines: by metric the logged value, the estimate and its difference from what was logged."""
    return {
        "policy": data["policy"],
        "effective_samples": data["effective_samples"],
        "metrics": {name: _headline(data["metrics"].get(name)) for name in ("quality", "cost_usd", "reward")},
    }


def _headline(metric: Mapping[str, Any] | None) -> dict[str, Any]:
    if metric is None:
        return {
            "logged": None,
            "estimate": None,
            "difference": None,
            "cannot_tell": _NO_VALUE,
            "effective_samples": 0.0,
        }
    best = next((e for e in metric["estimates"] if e["estimator"] == metric["headline"]), None)
    return {
        "logged": _with_interval(metric["logged"]),
        "estimate": _with_interval(best),
        "difference": _with_interval(metric["difference"]),
        "cannot_tell": metric["cannot_tell"],
        "effective_samples": metric["effective_samples"],
    }


def _with_interval(estimate: Mapping[str, Any] | None) -> dict[str, float] | None:
    """Its value and its first interval; None where one of them is no number."""
    if estimate is None or not estimate["intervals"]:
        return None
    interval = estimate["intervals"][0]
    values = {"value": estimate["value"], "low": interval["low"], "high": interval["high"]}
    return None if any(value is None for value in values.values()) else values
