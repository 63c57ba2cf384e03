"""Open Bandit Pipeline's estimates for random logs that any test can generate again, bit for bit.

Runs in an environment of its own (README.md beside it) and knows nothing of this project: what it writes is an
independent answer. `random_log` is the contract: the test that reads the estimates carries the same lines.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import platform
import warnings
from pathlib import Path
from typing import Any, Final

import numpy as np
import obp
import sklearn
from obp.ope import (
    DirectMethod,
    DoublyRobust,
    DoublyRobustWithShrinkage,
    DoublyRobustWithShrinkageTuning,
    InverseProbabilityWeighting,
    InverseProbabilityWeightingTuning,
    ReplayMethod,
    SelfNormalizedDoublyRobust,
    SelfNormalizedInverseProbabilityWeighting,
    SwitchDoublyRobust,
    SwitchDoublyRobustTuning,
)
from sklearn.linear_model import Ridge

__all__ = ["Log", "estimates_of", "main", "random_log", "specifications"]

Log = dict[str, np.ndarray[Any, Any]]
"""contexts (n, 5), logging (n, K), chosen (n,), reward (n,), target (n, K), predicted (n, K)."""

_THRESHOLDS: Final = (1.0, 3.0, 10.0)
_SHRINKAGES: Final = (0.0, 1.0, 10.0, 100.0)
_GRID: Final = (1.0, 3.0, 10.0, 30.0)
_SLOPE_DELTA: Final = 0.1
_FOLDS: Final = 3
_RIDGE_ALPHA: Final = 1.0


def random_log(*, seed: int, n: int, n_arms: int, target: str, reward: str) -> Log:
    """Logged rounds, n of them; `target`: random, sparse, deterministic, ties (4 arms); `reward`: binary, continuous.

    Only what rounds alike everywhere: sums are cumulative, and there is no power, exponential or matrix product.
    """
    rng = np.random.default_rng(seed)
    contexts, slopes = rng.standard_normal((n, 5)), rng.standard_normal((5, n_arms))
    score = sum(contexts[:, [j]] * slopes[j] for j in range(5))
    mean = 0.5 + 0.5 * score / (1.0 + abs(score))
    u, v = rng.random((n, n_arms)), rng.random((n, n_arms))
    u, v = u * u * u, v * v
    if target == "sparse":
        v = v * (v >= 0.5 * v.max(axis=1, keepdims=True))
    elif target == "deterministic":
        v = 1.0 * (v == v.max(axis=1, keepdims=True))
    elif target == "ties":  # weights of exactly 0, 1 and 3
        u, v = np.ones((n, 4)), np.array([0.0, 0.0, 1.0, 3.0])[v.argsort(axis=1).argsort(axis=1)]
    logging = 0.02 / n_arms + 0.98 * (u / u.cumsum(axis=1)[:, -1:])
    logging = logging if target != "ties" else u / 4.0
    chosen = np.minimum((logging.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1), n_arms - 1)
    noise, chosen_mean = rng.random(n), mean[np.arange(n), chosen]
    values = 1.0 * (noise < chosen_mean) if reward == "binary" else 0.5 * chosen_mean + 0.5 * noise
    predicted = 0.7 * mean + 0.3 * rng.random((n, n_arms))
    arrays = {"contexts": contexts, "logging": logging, "chosen": chosen, "reward": values}
    return {**arrays, "target": v / v.cumsum(axis=1)[:, -1:], "predicted": predicted}


def specifications() -> list[dict[str, Any]]:
    """The arguments of `random_log` for every log, each with a seed of its own."""
    sizes = itertools.product((50, 500, 3000), (2, 5, 20), ("random", "sparse", "deterministic"))
    shapes = [*sizes, (500, 4, "ties")]
    return [
        {"seed": 1 + seed, "n": n, "n_arms": n_arms, "target": target, "reward": reward}
        for seed, ((n, n_arms, target), reward) in enumerate(itertools.product(shapes, ("binary", "continuous")))
    ]


def estimates_of(log: Log) -> dict[str, float | None]:
    """Every estimate of one log by name; None where obp has no finite one or the estimator does not apply."""
    logged = {
        "reward": log["reward"],
        "action": log["chosen"],
        "pscore": log["logging"][np.arange(len(log["chosen"])), log["chosen"]],
        "action_dist": log["target"][:, :, np.newaxis],
        "position": np.zeros(len(log["chosen"]), dtype=int),  # obp's tuners of DR broadcast wrongly without it
    }
    predictions = {"estimated_rewards_by_reg_model": log["predicted"][:, :, np.newaxis]}
    both = {**logged, **predictions}
    found = {
        "dm": DirectMethod().estimate_policy_value(**both),
        "ips": InverseProbabilityWeighting().estimate_policy_value(**logged),
        "snips": SelfNormalizedInverseProbabilityWeighting().estimate_policy_value(**logged),
        "dr": DoublyRobust().estimate_policy_value(**both),
        "sndr": SelfNormalizedDoublyRobust().estimate_policy_value(**both),
    }
    for tau in _THRESHOLDS:
        found[f"clipped_ips_{tau:g}"] = InverseProbabilityWeighting(lambda_=tau).estimate_policy_value(**logged)
        found[f"switch_dr_{tau:g}"] = SwitchDoublyRobust(lambda_=tau).estimate_policy_value(**both)
    for shrinkage in _SHRINKAGES:
        shrunk = DoublyRobustWithShrinkage(lambda_=shrinkage).estimate_policy_value(**both)
        found[f"dr_shrinkage_{shrinkage:g}"] = shrunk
    for name, by_slope, plain in (
        ("clipped_ips", InverseProbabilityWeightingTuning, InverseProbabilityWeighting),
        ("switch_dr", SwitchDoublyRobustTuning, SwitchDoublyRobust),
        ("dr_shrinkage", DoublyRobustWithShrinkageTuning, DoublyRobustWithShrinkage),
    ):
        found |= _tuned(name, by_slope, plain, both)
    deterministic = np.isin(log["target"], (0, 1)).all()
    found["replay"] = ReplayMethod().estimate_policy_value(**logged) if deterministic else math.nan
    for name, weights in (("cross_fitted", np.ones(len(log["reward"]))), ("mrdr", _mrdr_weights(log))):
        fitted = {**logged, "estimated_rewards_by_reg_model": _cross_fitted(log, weights)[:, :, np.newaxis]}
        found[f"{name}_dm"] = DirectMethod().estimate_policy_value(**fitted)
        found[f"{name}_dr"] = DoublyRobust().estimate_policy_value(**fitted)
    return {name: float(value) if math.isfinite(value) else None for name, value in found.items()}


def _tuned(name: str, by_slope: Any, plain: Any, both: Log) -> dict[str, float]:
    """SLOPE's estimate, and the least threshold of the grid that gives it.

    Thresholds above every weight tie, and which of them obp names hangs on numpy's sort; the estimate does not.
    """
    tuner = by_slope(lambdas=list(_GRID), tuning_method="slope", delta=_SLOPE_DELTA)
    estimate = tuner.estimate_policy_value_with_tuning(**both)
    same = [tau for tau in _GRID if plain(lambda_=tau).estimate_policy_value(**both) == estimate]
    return {f"slope_{name}": estimate, f"slope_{name}_threshold": min(same)}


def _mrdr_weights(log: Log) -> np.ndarray[Any, Any]:
    """π(a)² (1 − p(a)) / p(a)² of the arm drawn (Farajtabar et al., 2018), shape (n,)."""
    rows = np.arange(len(log["chosen"]))
    target, propensity = log["target"][rows, log["chosen"]], log["logging"][rows, log["chosen"]]
    return np.asarray(target * target * (1.0 - propensity) / (propensity * propensity))


def _cross_fitted(log: Log, weights: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A ridge regression an arm, fitted on the other folds (a row's fold is its index mod 3), shape (n, K).

    Rows of weight 0 are dropped. An arm left without rows predicts the unweighted mean of all rows of the other folds.
    """
    rows = np.arange(len(log["chosen"]))
    predicted = np.empty_like(log["predicted"])
    for fold in range(_FOLDS):
        held_out, others = rows % _FOLDS == fold, rows % _FOLDS != fold
        for arm in range(predicted.shape[1]):
            own = others & (log["chosen"] == arm) & (weights > 0)
            if not own.any():
                predicted[held_out, arm] = log["reward"][others].mean()
                continue
            ridge = Ridge(alpha=_RIDGE_ALPHA, fit_intercept=True)
            ridge.fit(log["contexts"][own], log["reward"][own], sample_weight=weights[own])
            predicted[held_out, arm] = ridge.predict(log["contexts"][held_out])
    return predicted


def _digest(log: Log) -> str:
    """Sixteen hex digits of SHA-256 over the arrays in the order of `random_log`, as little-endian 8-byte numbers."""
    kinds = {name: "<i8" if name == "chosen" else "<f8" for name in log}
    return hashlib.sha256(b"".join(log[name].astype(kinds[name]).tobytes() for name in log)).hexdigest()[:16]


def main() -> None:
    """Write the estimates of every log to the file named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path, help="the JSON file to write")
    output: Path = parser.parse_args().output
    described, found = specifications(), []
    for description in described:
        log = random_log(**description)
        description["sha256"] = _digest(log)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 where no arm drawn has any weight: written as null
            found.append(estimates_of(log))
    versions = {"python": platform.python_version(), "numpy": np.__version__}
    document = {
        "made_by": {"obp": obp.__version__, "scikit-learn": sklearn.__version__, **versions},
        "slope": {"grid": _GRID, "delta": _SLOPE_DELTA},
        "cross_fitting": {"folds": _FOLDS, "ridge_alpha": _RIDGE_ALPHA},
        "logs": described,
        "estimates": {name: [one[name] for one in found] for name in found[0]},
    }
    output.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
