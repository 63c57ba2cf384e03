"""A pool that learns from the log it is judged on: what it would have chosen at each decision, knowing what was known.

The pool is the library's own. It is taught the log's events in their order, as the service was; what it would have done
never reaches the log. Knows no estimator and no file.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bandit.allowance import known_cost
from bandit.pool import Pool
from bandit.types import Context, Decision, Feedback, FloatArray, Outcome
from evaluation.logged import LoggedRounds
from evaluation.measures import Measures

__all__ = ["GradedAnswer", "Learning"]

_MOST_WEIGHT = 10.0  # of a round's residual in what the budget is told was spent
_OUTCOME, _FEEDBACK, _REVISION = 0, 1, 2


@dataclass(frozen=True, slots=True)
class GradedAnswer:
    """A benchmark answer in a log: its position, the model, its quality in [0, 1], its category."""

    seq: int
    model: str
    quality: float
    category: str | None


@dataclass(slots=True)
class _Row:
    """A decision the candidate would have made, and what the log says came of the one that was made."""

    decision: Decision
    outcomes: list[Outcome]
    spent_usd: tuple[float, float | None] | None
    graded: str
    first: float
    last: float


class Learning:
    """The candidate `config:FILE#POOL`: for each decision, in order, the pool's probabilities given all events before.

    So its probabilities depend on the past alone, and importance weighting stays sound although both policies learn.
    What is estimated is the pool's gain decision by decision, on what *the log's* choices taught: a pool that would
    explore otherwise learns otherwise, and differs most while little is known. Its budget cannot be driven by what the
    log's choices cost: it books what its own were expected to cost and pays a doubly robust estimate, expectation +
    min(w, 10)·(realised − expected of the model drawn). Limits are tested on the log's calls of each model.

    Each attempt teaches the model it was made to, and feedback the model that answered, as in the service. Calls that
    nobody drew (a session's, an experiment's, shadows) are never judged, but teach what they taught the service; a
    shadow is neither in the pool's clock nor in its budget.
    """

    learns = True

    def __init__(
        self,
        spec: str,
        make: Callable[[], Pool],
        measures: Measures,
        *,
        notes: Sequence[str] = (),
        answers: Sequence[Sequence[GradedAnswer]] = (),
    ) -> None:
        """`make`: a pool as it starts; called once, and again for rejection replay.

        `answers`: for each log in turn, the benchmark answers in it by their position.
        """
        self.spec, self.measures = spec, measures
        self._notes = tuple(notes)
        self._make, self._answers = make, answers
        self._follower = _Follower(make(), answers)
        self._sampler: _Follower | None = None
        self._flagged = 0

    @property
    def notes(self) -> tuple[str, ...]:
        """See `Candidate`."""
        flagged = f"no model met its limits in {self._flagged:,} decisions: there the least violating one counts"
        return (*self._notes, flagged) if self._flagged else self._notes

    def probabilities(self, chunk: LoggedRounds) -> FloatArray:
        """See `Candidate`: decide and learn through the chunk, shape (n, K)."""
        follower = self._follower
        columns = [chunk.arms.index(name) for name in follower.pool.names]
        probabilities = np.zeros((len(chunk), len(chunk.arms)))
        cost_usd = self.measures.cost_usd(chunk)
        drawn_with = chunk.behaviour[np.arange(len(chunk)), chunk.chosen]
        for i in range(len(chunk)):
            decision = follower.decide(chunk, i)
            p = decision.probabilities
            probabilities[i, columns] = p / p.sum()
            self._flagged += decision.infeasible and bool(chunk.drawn[i])
            # Where nothing was drawn the pool is taken along: it books what the log's call cost.
            follower.learn(chunk, i, decision, float(drawn_with[i]) if chunk.drawn[i] else None, float(cost_usd[i]))
        return probabilities

    def state(self) -> dict[str, Any]:
        """What the pool has learned of the log so far (`Pool.state`)."""
        return self._follower.pool.state()

    def drawn(self, chunk: LoggedRounds, rng: np.random.Generator) -> NDArray[np.intp]:
        """For rejection replay (Li et al., 2011): what a pool draws that learns only where that is the log's, (n,)."""
        if self._sampler is None:
            self._sampler = _Follower(self._make(), self._answers)
        drawn = np.empty(len(chunk), dtype=np.intp)
        cost_usd = self.measures.cost_usd(chunk)
        for i in range(len(chunk)):
            decision = self._sampler.decide(chunk, i, rng)
            drawn[i] = chunk.arms.index(decision.chosen)
            if drawn[i] == chunk.chosen[i]:
                self._sampler.learn(chunk, i, decision, None, float(cost_usd[i]))
        return drawn


class _Follower:
    """A pool taken through a log: it decides, and is taught what stands in the log in between."""

    def __init__(self, pool: Pool, answers: Sequence[Sequence[GradedAnswer]]) -> None:
        self.pool = pool
        self._answers, self._log = [deque(of_log) for of_log in answers], 0
        self._outstanding: list[tuple[int, int, int, _Row]] = []
        self._told = 0
        self._last_seq = -1
        self._unused = np.random.Generator(np.random.PCG64(0))  # decide draws an arm, which nobody may look at

    def decide(self, chunk: LoggedRounds, i: int, rng: np.random.Generator | None = None) -> Decision:
        """What the pool decides for round i, knowing what stands in the log before it."""
        self._catch_up(int(chunk.seq[i]))
        x = chunk.contexts[i].astype(np.float32)
        context = Context(x, self.pool.features.version, int(chunk.input_tokens[i]))
        return self.pool.decide(context, rng or self._unused, decision_id="", ts=float(chunk.ts[i]))

    def learn(self, chunk: LoggedRounds, i: int, decision: Decision, drawn_with: float | None, cost_usd: float) -> None:
        """Count the decision and put in line what will come of the log's; `cost_usd` NaN where unknown.

        `drawn_with`: the propensity of the log's choice; None: the pool's own was the same, and costs what it cost.
        """
        pool, p, name = self.pool, decision.probabilities, chunk.arms[chunk.chosen[i]]
        expected = known_cost(decision.predicted_cost_usd.astype(np.float64))
        at = pool.names.index(name) if name in pool.names else None
        booked = float(p @ expected) if drawn_with is not None or at is None else float(expected[at])
        beside = bool(chunk.beside[i])
        if not beside:
            pool.advance(decision, expected_usd=booked)
        spent: float | None = None
        if not np.isnan(cost_usd):
            weight = 0.0 if at is None else 1.0
            if drawn_with is not None and at is not None:
                weight = min(float(p[at]) / drawn_with, _MOST_WEIGHT)
            spent = max(0.0, booked + weight * (cost_usd - (0.0 if at is None else float(expected[at]))))
        graded = int(chunk.graded[i])
        row = _Row(
            replace(decision, chosen=name),
            [],
            None if beside else (booked, spent),
            chunk.arms[graded],
            float(chunk.first_quality[i]),
            float(chunk.last_quality[i]),
        )
        for seq, outcome in _outcomes(chunk, i, cost_usd):
            row.outcomes.append(outcome)
            self._push(seq, _OUTCOME, row)
        first, last = int(chunk.first_seq[i]), int(chunk.last_seq[i])
        if first >= 0 and graded >= 0:  # else nothing was there to be graded
            self._push(first, _FEEDBACK, row)
            if last > first:
                self._push(last, _REVISION, row)

    def _push(self, seq: int, kind: int, row: _Row) -> None:
        self._told += 1
        heapq.heappush(self._outstanding, (seq, self._told, kind, row))

    def _catch_up(self, seq: int) -> None:
        """Learn what stands in the log before `seq`; all that is outstanding where another log begins."""
        everything = seq < self._last_seq
        self._last_seq = seq
        if everything:
            self._learn_before(inf)
            self._log += 1
        self._learn_before(seq)

    def _learn_before(self, seq: float) -> None:
        answers = self._answers[self._log] if self._log < len(self._answers) else deque[GradedAnswer]()
        while True:
            following = self._outstanding[0][0] if self._outstanding else inf
            if answers and answers[0].seq < min(seq, following):
                answer = answers.popleft()
                if answer.model in self.pool.names:
                    self.pool.apply_benchmark(answer.model, answer.quality, answer.category)
                continue
            if following >= seq:
                return
            _, _, kind, row = heapq.heappop(self._outstanding)
            if kind == _OUTCOME:
                spent, row.spent_usd = row.spent_usd, None  # once, for all of its attempts
                self.pool.apply_outcome(row.decision, row.outcomes.pop(0), spent_usd=spent, booked=spent is not None)
            elif kind == _FEEDBACK:
                self.pool.apply_feedback(row.decision, Feedback("", 0.0, row.first), model=row.graded)
            elif kind == _REVISION and row.last != row.first:
                revision = Feedback("", 0.0, row.last, revises=row.first)
                self.pool.apply_feedback(row.decision, revision, model=row.graded)


def _outcomes(chunk: LoggedRounds, i: int, cost_usd: float) -> list[tuple[int, Outcome]]:
    """What came of round i at its places in the log, for learning; nothing where nothing is known."""
    several = chunk.attempts.get(int(chunk.row[i]))
    if several is not None:  # each teaches its own model, as it did in the service
        return [
            (
                one.seq,
                Outcome(
                    decision_id="",
                    ts=0.0,
                    model=one.model,
                    status=one.status,
                    latency_s=one.latency_s,
                    input_tokens=one.input_tokens,
                    output_tokens=one.output_tokens,
                    cost_usd=one.cost_usd,
                    time_to_first_token_s=one.time_to_first_token_s,
                    attempt=one.attempt,
                    http_status=one.http_status,
                ),
            )
            for one in several
        ]
    if chunk.outcome_seq[i] < 0:
        return []  # its caller told nothing
    outcome = Outcome(
        decision_id="",
        ts=0.0,
        model=chunk.arms[chunk.chosen[i]],
        status="ok",
        latency_s=_known(chunk.latency_s[i]),
        input_tokens=_whole(chunk.tokens_in[i]),
        output_tokens=_whole(chunk.tokens_out[i]),
        cost_usd=_known(cost_usd),
        time_to_first_token_s=_known(chunk.first_token_s[i]),
    )
    return [(int(chunk.outcome_seq[i]), outcome)]


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _whole(value: float) -> int | None:
    return None if np.isnan(value) else int(value)
