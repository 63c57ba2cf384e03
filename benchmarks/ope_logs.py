"""Logs of this project's own policy on recorded outcomes, whose truth is known, as what replay reads; no file between.

Owns how a simulation becomes logged rounds. Knows no estimator.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bandit.types import FloatArray
from evaluation.logged import LoggedRounds
from evaluation.simulation import Trace, Workload

__all__ = ["LoggedTrace"]


@dataclass(slots=True)
class LoggedTrace:
    """A source for `evaluation.replay` made of a simulation; rounds from number `first` on are judged."""

    arms: tuple[str, ...]
    dimension: int
    selected: int
    categories: tuple[str, ...]
    tiers: tuple[str, ...]
    rounds: LoggedRounds

    @classmethod
    def of(cls, workload: Workload, trace: Trace, *, first: int = 0, feedback_delay_s: float = 0.0) -> LoggedTrace:
        """What the service would have logged of the run, in the order it would have."""
        n, calls = len(trace), np.arange(len(trace))
        contexts = [workload.contexts[p] for p in workload.prompts.tolist()]
        categories = tuple(sorted({context.category or "" for context in workload.contexts}))
        chosen = trace.chosen
        decided, outcome, graded = _positions(trace, feedback_delay_s)
        known = np.ones(n, dtype=np.bool_)
        rounds = LoggedRounds(
            arms=workload.models,
            row=calls.astype(np.int64),
            selected=calls >= first,
            ts=trace.arrived_ts,
            contexts=np.stack([context.x for context in contexts]).astype(np.float64),
            input_tokens=np.array([context.input_tokens for context in contexts], dtype=np.int64),
            chosen=chosen,
            behaviour=trace.probabilities,
            feasible=trace.feasible,
            predicted_quality=trace.predicted_quality.astype(np.float64),
            predicted_cost_usd=trace.predicted_cost_usd.astype(np.float64),
            category=np.array([categories.index(context.category or "") for context in contexts], dtype=np.intp),
            tier=np.full(n, -1, dtype=np.intp),
            quality=np.where(trace.graded, trace.quality, np.nan),
            cost_usd=trace.cost_usd,
            latency_s=trace.latency_s,
            tokens_in=workload.input_tokens[chosen, calls],
            tokens_out=workload.output_tokens[chosen, calls],
            tokens_cached=np.zeros(n),
            first_token_s=np.full(n, np.nan),
            logged_reward=np.full(n, np.nan),
            answered=known,
            failed=~known,
            seq=decided,
            outcome_seq=outcome,
            first_seq=graded,
            last_seq=graded,
            first_quality=trace.quality,
            last_quality=trace.quality,
            graded=chosen,
            drawn=known,
            beside=~known,
        )
        return cls(workload.models, rounds.contexts.shape[1], n - first, categories, (), rounds)

    def chunks(self, rows: int = 50_000, *, selected_only: bool = True) -> Iterator[LoggedRounds]:
        """See `evaluation.replay.Source`."""
        rounds = self.rounds.pick(self.rounds.selected) if selected_only else self.rounds
        for start in range(0, len(rounds), rows):
            place = np.arange(len(rounds))
            yield rounds.pick((place >= start) & (place < start + rows))


def _positions(trace: Trace, feedback_delay_s: float) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Places in the log of every decision, outcome and feedback (-1: none), by virtual time."""
    n = len(trace)
    back: FloatArray = trace.arrived_ts + np.nan_to_num(trace.latency_s)
    ts = np.concatenate((trace.arrived_ts, back, back + feedback_delay_s))
    kind = np.repeat((2, 0, 1), n)  # what is due when a call arrives comes before it
    place = np.empty(3 * n, dtype=np.int64)
    place[np.lexsort((kind, ts))] = np.arange(1, 3 * n + 1)
    # At the same moment an outcome stands behind its own decision.
    decided, outcome, graded = place[:n], place[n : 2 * n].copy(), place[2 * n :].copy()
    outcome = np.maximum(outcome, decided)
    graded = np.maximum(graded, outcome)
    return decided * 4, outcome * 4 + 1, np.where(trace.graded, graded * 4 + 2, -1)
