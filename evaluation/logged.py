"""A chunk of a log as plain arrays: what was decided, how likely everything was, and what came of it.

Only the form; where a chunk comes from (a log, a simulation) is others' matter, and so is what it is good for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandit.types import BoolArray, FloatArray, Status

__all__ = ["Attempt", "LoggedRounds"]


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a decision that took several, at its place in the log; None where unknown."""

    seq: int
    attempt: int
    model: str
    status: Status
    http_status: int | None
    latency_s: float | None
    input_tokens: int | None
    output_tokens: int | None
    cost_usd: float | None
    time_to_first_token_s: float | None


@dataclass(frozen=True, slots=True, eq=False)
class LoggedRounds:
    """n decisions of one pool in the order of the log; K models (`arms`), contexts of d features.

    `row` (n,): their numbers, ascending. `selected` (n,): those that are judged; the others are there to learn from.
    `chosen` (n,): index of the model drawn, from `behaviour` (n, K), 0 for a model that was not in the pool then.
    `feasible` (n, K). `predicted_*` (n, K): as logged with the decision, NaN where unknown. `category`, `tier` (n,):
    codes of groups, -1 for none. What came of asking the model chosen, each (n,), NaN where unknown: `quality` (of its
    answer; 0 where it failed, whoever answered then), `cost_usd` and `latency_s` (over its own attempts, retries
    included), `tokens_in` (`tokens_cached` of them from a cache), `tokens_out`, `first_token_s`, `logged_reward`.
    `failed` (n,): the model was to blame. `seq`, and
    `outcome_seq`, `first_seq`, `last_seq` (-1 where there is none): positions in the log of the decision, its outcome,
    its first and last feedback, which said `first_quality` and `last_quality`.

    For who learns: `graded` (n,): the model whose answer feedback speaks of, -1 for none of these; `drawn` (n,): false
    where nobody could have chosen otherwise; `beside` (n,): a shadow of another decision. `attempts`: by row, those of
    decisions that took several, or did not end well.
    """

    arms: tuple[str, ...]
    row: NDArray[np.int64]
    selected: BoolArray
    ts: FloatArray
    contexts: FloatArray
    input_tokens: NDArray[np.int64]
    chosen: NDArray[np.intp]
    behaviour: FloatArray
    feasible: BoolArray
    predicted_quality: FloatArray
    predicted_cost_usd: FloatArray
    category: NDArray[np.intp]
    tier: NDArray[np.intp]
    quality: FloatArray
    cost_usd: FloatArray
    latency_s: FloatArray
    tokens_in: FloatArray
    tokens_out: FloatArray
    tokens_cached: FloatArray
    first_token_s: FloatArray
    logged_reward: FloatArray
    answered: BoolArray
    failed: BoolArray
    seq: NDArray[np.int64]
    outcome_seq: NDArray[np.int64]
    first_seq: NDArray[np.int64]
    last_seq: NDArray[np.int64]
    first_quality: FloatArray
    last_quality: FloatArray
    graded: NDArray[np.intp]
    drawn: BoolArray
    beside: BoolArray
    attempts: Mapping[int, Sequence[Attempt]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.row)

    def pick(self, mask: BoolArray) -> LoggedRounds:
        """Those decisions where `mask` (n,) is true."""
        if mask.all():
            return self
        kept = {f.name: getattr(self, f.name)[mask] for f in fields(self) if f.name not in ("arms", "attempts")}
        return LoggedRounds(arms=self.arms, attempts=self.attempts, **kept)

    @classmethod
    def of(
        cls,
        found: Mapping[str, Any],
        arms: tuple[str, ...],
        dimension: int,
        attempts: Mapping[int, Sequence[Attempt]],
    ) -> LoggedRounds:
        """From the columns that `evaluation.selection` asks for."""
        n, k = len(found["row"]), len(arms)
        status = np.ma.filled(np.ma.asarray(found["status"]), "")
        failed = _filled(found["failed"], fill=False).astype(np.bool_)
        answered = np.asarray(status == "ok", dtype=np.bool_)
        known = answered | np.asarray(status == "", dtype=np.bool_)  # its caller made the call and told nothing of it
        last = _filled(found["last_quality"])
        cost = _filled(found["cost_usd"])
        index = {name: i for i, name in enumerate(arms)}
        chosen = np.fromiter((index[name] for name in found["chosen"].tolist()), dtype=np.intp, count=n)
        speaks_of = np.ma.filled(np.ma.asarray(found["graded"]), "").tolist()
        graded = np.fromiter((index.get(name, -1) for name in speaks_of), dtype=np.intp, count=n)
        own = graded == chosen  # the answer that was graded and paid for is the chosen model's
        return cls(
            arms=arms,
            row=np.asarray(found["row"], dtype=np.int64),
            selected=np.asarray(found["selected"], dtype=np.bool_),
            ts=np.asarray(found["ts"], dtype=np.float64),
            contexts=_stacked(found, "x", dimension, n),
            input_tokens=_filled(found["input_tokens"], fill=0).astype(np.int64),
            chosen=chosen,
            behaviour=np.nan_to_num(_stacked(found, "p", k, n)),
            feasible=_stacked(found, "f", k, n, fill=0.0) > 0,
            predicted_quality=_stacked(found, "q", k, n),
            predicted_cost_usd=_stacked(found, "c", k, n),
            category=_filled(found["category_code"], fill=-1).astype(np.intp),
            tier=_filled(found["tier_code"], fill=-1).astype(np.intp),
            quality=np.where(failed, 0.0, np.where(known & own, last, np.nan)),
            cost_usd=np.where(failed & np.isnan(cost), 0.0, cost),
            latency_s=_filled(found["latency_s"]),
            tokens_in=_filled(found["tokens_in"]),
            tokens_out=_filled(found["tokens_out"]),
            tokens_cached=_filled(found["tokens_cached"]),
            first_token_s=_filled(found["first_token_s"]),
            logged_reward=np.where(own, _filled(found["reward"]), np.nan),
            answered=answered,
            failed=failed,
            seq=np.asarray(found["seq"], dtype=np.int64),
            outcome_seq=_filled(found["outcome_seq"], fill=-1).astype(np.int64),
            first_seq=_filled(found["first_seq"], fill=-1).astype(np.int64),
            last_seq=_filled(found["last_seq"], fill=-1).astype(np.int64),
            first_quality=_filled(found["first_quality"]),
            last_quality=last,
            graded=graded,
            drawn=np.asarray(found["drawn"], dtype=np.bool_),
            beside=np.asarray(found["beside"], dtype=np.bool_),
            attempts=attempts,
        )


def _filled(values: Any, fill: float = np.nan) -> NDArray[Any]:
    masked = np.ma.asarray(values)
    if np.isnan(fill):
        return np.asarray(np.ma.filled(masked.astype(np.float64), np.nan))
    return np.asarray(np.ma.filled(masked, fill))


def _stacked(found: Mapping[str, Any], short: str, count: int, n: int, fill: float = np.nan) -> FloatArray:
    stacked = np.empty((n, count))
    for i in range(count):
        stacked[:, i] = np.ma.filled(np.ma.asarray(found[f"{short}{i}"]).astype(np.float64), fill)
    return stacked
