"""A learning pool over outcomes that every model would have yielded, in virtual time and exactly as the service learns.

Calls, outcomes and feedback happen in the order of their virtual times; the pool is the library's own and sees of each
call what a service would see. Knows no file, no configuration and no clock.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput, NoFeasibleArm
from bandit.pool import Change, Pool
from bandit.types import BoolArray, Context, Decision, Feedback, FloatArray, Outcome

__all__ = ["Observer", "Trace", "Workload", "simulate"]

_MEASURES = ("quality", "cost_usd", "latency_s", "input_tokens", "output_tokens")
REFUSED = -1


@dataclass(frozen=True, slots=True, eq=False)
class Workload:
    """n calls in order, and the outcome that each of K models would have yielded for each.

    `models`: the arrays' rows, named and ordered as the pool's arms. `contexts`: one per prompt. `prompts` (n,): which
    of them each call has. The outcomes have shape (K, n), NaN where not measured. Raises InvalidInput for other shapes.
    """

    models: tuple[str, ...]
    contexts: tuple[Context, ...]
    prompts: NDArray[np.intp]
    quality: FloatArray
    cost_usd: FloatArray
    latency_s: FloatArray
    input_tokens: FloatArray
    output_tokens: FloatArray

    def __post_init__(self) -> None:
        shape = (len(self.models), len(self.prompts))
        for name in _MEASURES:
            found = getattr(self, name).shape
            if found != shape:
                raise InvalidInput(name, f"must have shape (models, calls) = {shape}, not {found}")
        if len(self) and not 0 <= self.prompts.min() <= self.prompts.max() < len(self.contexts):
            raise InvalidInput("prompts", f"must be indices of the {len(self.contexts)} contexts")

    def __len__(self) -> int:
        return len(self.prompts)


class Observer(Protocol):
    """Is told of every event in its order, of an outcome or feedback before what it changed."""

    def decided(self, decision: Decision) -> None:
        """A call was routed."""

    def came_back(self, outcome: Outcome) -> None:
        """The model answered."""

    def graded(self, feedback: Feedback) -> None:
        """Feedback came."""

    def changed(self, decision: Decision, changes: Sequence[Change]) -> None:
        """The outcome or feedback just told of, of this decision, changed standings or reset heads."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What a pool did with a workload, by call.

    `chosen` (n,): row of the model, -1 for a call refused because no model was feasible; `propensity` (n,) and
    `probabilities` (n, K) are then NaN, as is what was realised. `feasible` (n, K) and `flagged` (n,) (no arm met the
    limits) as in the decision. `predicted_*` (n, K): what was expected of every model at the decision, in half the
    digits, as a log has it. `quality`, `cost_usd`, `latency_s` (n,): what was realised, NaN where not measured.
    `graded` (n,): whether the quality came back as feedback. `multiplier` (n,): the pacer's. `arrived_ts` (n,):
    virtual unix times. `changes`: (the last call decided by then, what changed), arms as rows.
    """

    chosen: NDArray[np.intp]
    propensity: FloatArray
    probabilities: FloatArray
    feasible: BoolArray
    flagged: BoolArray
    predicted_quality: NDArray[np.float32]
    predicted_cost_usd: NDArray[np.float32]
    predicted_latency_s: NDArray[np.float32]
    quality: FloatArray
    cost_usd: FloatArray
    latency_s: FloatArray
    graded: BoolArray
    multiplier: FloatArray
    arrived_ts: FloatArray
    changes: tuple[tuple[int, Change], ...]

    def __len__(self) -> int:
        return len(self.chosen)


def simulate(
    pool: Pool,
    workload: Workload,
    *,
    rng: np.random.Generator,
    rate_per_s: float = 1.0,
    poisson: bool = False,
    feedback_delay_s: float = 0.0,
    feedback_share: float = 1.0,
    start_ts: float = 0.0,
    observer: Observer | None = None,
) -> Trace:
    """Route every call of a workload with `pool`, which learns on the way; returns what it did.

    A call arrives every 1/`rate_per_s` seconds (or at `poisson` distances of that mean), from unix time `start_ts` on.
    Its outcome is learned when its recorded latency has passed (at once where none is), its quality `feedback_delay_s`
    later, for a share `feedback_share` of the calls. What is due when a call arrives comes before that call; of two due
    at the same time, first the one that became known first. All chance comes from `rng`: first who gives feedback,
    then arrivals, then one draw a decision, so that runs which differ in the pool alone meet the same chance. After
    the last call everything outstanding is learned. Raises InvalidInput for a workload of other models.
    """
    if pool.names != workload.models:
        raise InvalidInput("workload.models", f"must be the pool's arms, {', '.join(pool.names)}, in that order")
    if not (rate_per_s > 0 and feedback_delay_s >= 0 and 0 <= feedback_share <= 1):
        raise InvalidInput("simulate", "needs a rate above 0, a delay of at least 0 and a share between 0 and 1")
    n = len(workload)
    gives = rng.random(n) < feedback_share
    gaps = rng.exponential(1.0 / rate_per_s, n).cumsum() if poisson else np.arange(n) / rate_per_s
    run = _Run(
        pool, workload, gives=gives, arrived_ts=start_ts + gaps, feedback_delay_s=feedback_delay_s, observer=observer
    )
    for call, ts in enumerate(run.arrived_ts.tolist()):
        run.catch_up(ts)
        run.arrive(call, ts, rng)
    run.catch_up(inf)
    return run.trace()


# What is outstanding: when it is due, its place among those due then, its call, its decision, and what it is.
_Due = tuple[float, int, int, Decision, bool]


class _Run:
    """A simulation under way."""

    def __init__(
        self,
        pool: Pool,
        workload: Workload,
        *,
        gives: BoolArray,
        arrived_ts: FloatArray,
        feedback_delay_s: float,
        observer: Observer | None,
    ) -> None:
        n, n_arms = len(workload), len(workload.models)
        self._pool, self._workload, self._observer = pool, workload, observer
        self._gives, self._delay_s = gives.tolist(), feedback_delay_s
        self._row = {name: row for row, name in enumerate(workload.models)}
        self._waiting: list[_Due] = []
        self._created = 0
        self._arrived = -1
        self._changes: list[tuple[int, Change]] = []
        self.arrived_ts = arrived_ts
        self._chosen = np.full(n, REFUSED, dtype=np.intp)
        self._probabilities = np.full((n, n_arms), np.nan)
        self._feasible = np.zeros((n, n_arms), dtype=np.bool_)
        self._flagged = np.zeros(n, dtype=np.bool_)
        self._predicted = np.full((3, n, n_arms), np.nan, dtype=np.float32)
        self._multiplier = np.full(n, np.nan)

    def arrive(self, call: int, ts: float, rng: np.random.Generator) -> None:
        """A call is decided, and its outcome becomes due."""
        self._arrived = call
        context = self._workload.contexts[self._workload.prompts[call]]
        try:
            decision = self._pool.decide(context, rng, decision_id=f"sim-{call}", ts=ts)
        except NoFeasibleArm:
            return
        if self._observer is not None:
            self._observer.decided(decision)
        self._pool.advance(decision)
        row = self._row[decision.chosen]
        self._chosen[call], self._flagged[call] = row, decision.infeasible
        self._probabilities[call], self._feasible[call] = decision.probabilities, decision.feasible
        quality, cost_usd, latency_s = self._predicted
        quality[call], cost_usd[call] = decision.predicted_quality, decision.predicted_cost_usd
        latency_s[call], self._multiplier[call] = decision.predicted_latency_s, decision.pacer_multiplier
        self._await(ts + (_known(self._workload.latency_s, row, call) or 0.0), call, decision, is_feedback=False)

    def catch_up(self, ts: float) -> None:
        """Learn everything that is due by `ts`."""
        while self._waiting and self._waiting[0][0] <= ts:
            due_ts, _, call, decision, is_feedback = heapq.heappop(self._waiting)
            if is_feedback:
                self._learn_feedback(call, decision, due_ts)
            else:
                self._learn_outcome(call, decision, due_ts)

    def trace(self) -> Trace:
        """What happened."""
        calls, refused = np.arange(len(self._chosen)), self._chosen == REFUSED

        def of_chosen(values: FloatArray) -> FloatArray:
            return np.where(refused, np.nan, values[self._chosen, calls])

        workload, quality = self._workload, of_chosen(self._workload.quality)
        return Trace(
            chosen=self._chosen,
            propensity=np.where(refused, np.nan, self._probabilities[calls, self._chosen]),
            probabilities=self._probabilities,
            feasible=self._feasible,
            flagged=self._flagged,
            predicted_quality=self._predicted[0],
            predicted_cost_usd=self._predicted[1],
            predicted_latency_s=self._predicted[2],
            quality=quality,
            cost_usd=of_chosen(workload.cost_usd),
            latency_s=of_chosen(workload.latency_s),
            graded=np.array(self._gives, dtype=np.bool_) & ~np.isnan(quality),
            multiplier=self._multiplier,
            arrived_ts=self.arrived_ts,
            changes=tuple(self._changes),
        )

    def _await(self, due_ts: float, call: int, decision: Decision, *, is_feedback: bool) -> None:
        heapq.heappush(self._waiting, (due_ts, self._created, call, decision, is_feedback))
        self._created += 1

    def _learn_outcome(self, call: int, decision: Decision, ts: float) -> None:
        workload, row = self._workload, self._row[decision.chosen]
        input_tokens = _known(workload.input_tokens, row, call)
        output_tokens = _known(workload.output_tokens, row, call)
        outcome = Outcome(
            decision_id=decision.decision_id,
            ts=ts,
            model=decision.chosen,
            status="ok",
            latency_s=_known(workload.latency_s, row, call),
            input_tokens=None if input_tokens is None else round(input_tokens),
            output_tokens=None if output_tokens is None else round(output_tokens),
            cost_usd=_known(workload.cost_usd, row, call),
        )
        if self._observer is not None:
            self._observer.came_back(outcome)
        self._note(decision, self._pool.apply_outcome(decision, outcome))
        if self._gives[call] and _known(workload.quality, row, call) is not None:
            self._await(ts + self._delay_s, call, decision, is_feedback=True)

    def _learn_feedback(self, call: int, decision: Decision, ts: float) -> None:
        quality = _known(self._workload.quality, self._row[decision.chosen], call)
        feedback = Feedback(decision.decision_id, ts, quality)
        if self._observer is not None:
            self._observer.graded(feedback)
        self._note(decision, self._pool.apply_feedback(decision, feedback))

    def _note(self, decision: Decision, changes: list[Change]) -> None:
        if changes:
            self._changes += [(self._arrived, change) for change in changes]
            if self._observer is not None:
                self._observer.changed(decision, changes)


def _known(values: FloatArray, row: int, call: int) -> float | None:
    value = values.item(row, call)  # half the time of values[row, call]
    return None if isnan(value) else value
