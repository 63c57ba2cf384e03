"""Open Bandit Dataset: a uniform policy's log of clicks judges the Thompson policy that ran beside it, and the reverse.

Reads `DIR/obd` (SOURCES of the data: Open Bandit Dataset, sample, CC BY 4.0). Knows no other set.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray

from bandit.types import FloatArray
from evaluation.estimators.regression import ArmRegression, Design
from evaluation.intervals import AnytimeSequence, bootstrap_draws
from evaluation.judgement import MetricJudgement, Standards, judge_metric
from evaluation.rounds import Rounds
from evaluation.tally import Tally

__all__ = ["CAMPAIGNS", "judged", "obd_table"]

CAMPAIGNS = ("all", "men", "women")


def obd_table(folder: Path) -> list[dict[str, Any]]:
    """One row a campaign from the uniform log to `bts`, and one for women the other way, which cannot be told."""
    rows = [_row(folder, campaign, log="random", policy="bts") for campaign in CAMPAIGNS]
    return [*rows, _row(folder, "women", log="bts", policy="random")]


def _row(folder: Path, campaign: str, *, log: str, policy: str) -> dict[str, Any]:
    found = judged(folder, campaign, log=log, policy=policy)
    by_name = {estimate.estimator: estimate for estimate in found.estimates}
    own = _read(f"SELECT avg(click) AS mean FROM '{folder}/{policy}_{campaign}.parquet'")  # noqa: S608
    return {
        "campaign": campaign,
        "log": log,
        "policy": policy,
        "effective_samples": round(found.effective_samples, 1),
        "logged": found.logged.value,
        "estimates": {name: estimate.value for name, estimate in by_name.items()},
        "intervals": {name: [[i.kind, i.low, i.high] for i in e.intervals] for name, e in by_name.items()},
        "mean_of_the_policys_own_log": float(own["mean"][0]),
        "cannot_tell": found.cannot_tell,
    }


def judged(
    folder: Path, campaign: str, *, log: str, policy: str, standards: Standards | None = None
) -> MetricJudgement:
    """What one policy's log says of the other's clicks."""
    logged = _read(
        f"SELECT item_id, position, click, propensity_score, COLUMNS('user_feature.*')"  # noqa: S608
        f" FROM '{folder}/{log}_{campaign}.parquet'"
    )
    item, position = logged["item_id"].astype(np.intp), _ranks(logged["position"])
    n, k = len(item), int(_policy_table(folder, campaign).shape[1])
    target = _policy_table(folder, campaign)[position] if policy == "bts" else np.full((n, k), 1.0 / k)
    behaviour = _behaviour(item, logged["propensity_score"].astype(np.float64), k)
    contexts = _one_hot([position, *(logged[name] for name in logged if name.startswith("user_feature"))])
    click = logged["click"].astype(np.float64)
    fold = np.arange(n) % 3
    model = ArmRegression(k, contexts.shape[1])
    model.add(Design(contexts, item, fold, (3, k), known=np.ones(n, dtype=np.bool_)), click)
    rounds = Rounds.of(item, behaviour, click, target, predicted=model.predict(contexts, fold, low=0.0, high=1.0))
    tally, sequence = Tally(n), AnytimeSequence()
    tally.add(0, rounds)
    sequence.add(rounds.with_predicted(np.zeros_like(target)))
    chosen = standards or Standards()
    draws = bootstrap_draws(tally.n_blocks, chosen.replicates, np.random.default_rng(0))
    anytime = {"IPS": sequence.interval()}
    return judge_metric("click", tally, chosen, draws, {}, bounds=(0.0, 1.0), anytime=anytime)


def _policy_table(folder: Path, campaign: str) -> FloatArray:
    """Probabilities of every item by position's rank, shape (positions, items)."""
    found = _read(f"SELECT * FROM '{folder}/bts_policy_{campaign}.parquet'")  # noqa: S608
    table = np.zeros((int(_ranks(found["position"]).max()) + 1, int(found["item_id"].max()) + 1))
    table[_ranks(found["position"]), found["item_id"]] = found["probability"]
    return np.asarray(table / table.sum(axis=1, keepdims=True))


def _read(query: str) -> dict[str, NDArray[Any]]:
    with duckdb.connect() as connection:
        return connection.execute(query).fetchnumpy()


def _behaviour(item: NDArray[np.intp], propensity: FloatArray, k: int) -> FloatArray:
    """The logged propensity of the item shown; the log has no other's, so the rest is spread evenly.

    Nothing but bounds on weights looks at those of items that were not shown.
    """
    behaviour = np.repeat(((1.0 - propensity) / (k - 1))[:, None], k, axis=1)
    behaviour[np.arange(len(item)), item] = propensity
    return behaviour


def _ranks(values: NDArray[Any]) -> NDArray[np.intp]:
    return np.asarray(np.unique(values, return_inverse=True)[1], dtype=np.intp)


def _one_hot(columns: list[NDArray[Any]]) -> FloatArray:
    parts = []
    for column in columns:
        ranks = _ranks(np.asarray(column).astype(str))
        parts.append(np.eye(int(ranks.max()) + 1)[ranks])
    return np.hstack(parts)
