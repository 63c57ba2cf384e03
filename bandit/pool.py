"""One pool: features → filters → policy → draw, and everything learned from what comes back.

`decide` reads the learned state and changes nothing; the `apply_*` methods are the only ones that change it, and are a
deterministic fold over decisions, outcomes and feedback in their logged order. Replaying a log therefore rebuilds the
pool. No clock, no id and no random number is made here: they are arguments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log, log1p
from typing import Any

import numpy as np

from bandit.drift import DriftDetectors
from bandit.errors import InvalidInput, NoFeasibleArm, SnapshotMismatch, UnknownArm
from bandit.features import Features
from bandit.filters import Filters, FilterSettings, Transition
from bandit.limits import Limit, bad_call, limits_of
from bandit.pacing import Pacer
from bandit.policy import Policy, one_hot
from bandit.posterior import HEADS, LATENCY, QUALITY, TOKENS, HeadPrior, Heads, rearranged
from bandit.quantiles import RecentQuantile
from bandit.scorer import Scorer, Utilities
from bandit.thompson import Thompson
from bandit.types import (
    Arm,
    Constraints,
    Context,
    Decision,
    Feedback,
    FloatArray,
    Objective,
    Outcome,
    Price,
    Prompt,
)

__all__ = ["DriftReset", "Pool"]

_DRIFT_SPANS = (1.0, 4.0, 4.0)  # residuals of quality, log tokens, log latency are clipped to ± these
_LATENCY_WINDOW = 256
_SHORTEST_S = 1e-4  # log latency needs a floor; no upstream answers faster
_FAILURE_IN_BOUNDS = 10.0  # a failed call counts as this many times the limit in the recent p95
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class DriftReset:
    """A head of an arm was pulled towards its prior: realised minus predicted moved by `change` (its own unit)."""

    arm: int
    head: str
    change: float


Change = Transition | DriftReset


class Pool:
    """A set of arms with an objective, limits and a policy; chooses for each request and learns.

    In five lines: make it, `decision = pool.choose(prompt, rng)`, call the model, `pool.update(decision, quality=…,
    latency_s=…, output_tokens=…)`. A service uses `decide` and the `apply_*` methods, which take its ids and clock.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        *,
        name: str = "pool",
        objective: Objective | None = None,
        constraints: Constraints | None = None,
        policy: Policy | None = None,
        features: Features | None = None,
        filters: FilterSettings | None = None,
        usd_per_request: float | None = None,
        half_life_requests: float | None = 5000.0,
        slope_precision: float = 50.0,
    ) -> None:
        self.name = name
        self.arms = tuple(arms)
        self.names = tuple(arm.name for arm in arms)
        self._index = {arm.name: i for i, arm in enumerate(arms)}
        if len(self._index) != len(self.arms):
            raise InvalidInput("arms", "names must be distinct")
        self.objective = objective or Objective()
        self.constraints = constraints or Constraints()
        self.policy: Policy = policy or Thompson()
        self.features = features or Features()
        self.step = 0
        self.pacer = None if usd_per_request is None else Pacer(usd_per_request)
        # Priors: quality unknown around one half; 1 to e^10 output tokens; latency around its reference.
        log_reference_s = log(self.objective.latency_reference_s)
        self.heads = Heads(
            len(arms),
            self.features.dimension,
            (
                HeadPrior(0.5, noise_sd=0.4, slope_precision=slope_precision),
                HeadPrior(5.0, noise_sd=1.0, slope_precision=slope_precision),
                HeadPrior(log_reference_s, noise_sd=0.7, slope_precision=slope_precision),
            ),
            half_life_requests=half_life_requests,
            slopes=self.policy.slopes,
        )
        self.limits = limits_of(self.constraints)
        tests = tuple((limit.kind, limit.rate) for limit in self.limits)
        self.filters = Filters(len(arms), tests, filters or FilterSettings())
        self.drift = DriftDetectors(len(HEADS), len(arms), _DRIFT_SPANS)
        self.latency = [RecentQuantile(0.95, _LATENCY_WINDOW) for _ in arms]
        self.time_to_first_token = [RecentQuantile(0.95, _LATENCY_WINDOW) for _ in arms]
        self._scorer = Scorer(self.objective, [arm.price for arm in arms])

    def set_prices(self, prices: Mapping[str, Price | None]) -> None:
        """Change some prices (name → Price, or None for unknown); they count from the next decision on."""
        for name in prices:
            if name not in self._index:
                raise UnknownArm(name, self.names)
        self.arms = tuple(replace(arm, price=prices.get(arm.name, arm.price)) for arm in self.arms)
        self._scorer = Scorer(self.objective, [arm.price for arm in self.arms])

    def choose(self, prompt: Prompt | Context, rng: np.random.Generator) -> Decision:
        """Decide and count the request; for use as a library (ids are the pool's step, time is not looked at)."""
        decision = self.decide(prompt, rng, decision_id=f"{self.name}-{self.step}", ts=0.0)
        self.advance()
        return decision

    def update(
        self,
        decision: Decision,
        *,
        quality: float | None = None,
        latency_s: float | None = None,
        output_tokens: int | None = None,
        cost_usd: float | None = None,
    ) -> list[Change]:
        """Learn what came of a decision made by `choose`; any part may be missing or come later."""
        changes: list[Change] = []
        if latency_s is not None or output_tokens is not None or cost_usd is not None:
            outcome = Outcome(
                decision_id=decision.decision_id,
                ts=0.0,
                model=decision.chosen,
                status="ok",
                latency_s=latency_s,
                output_tokens=output_tokens,
                cost_usd=cost_usd,
            )
            changes += self.apply_outcome(decision, outcome)
        if quality is not None:
            changes += self.apply_feedback(decision, Feedback(decision.decision_id, 0.0, quality))
        return changes

    def utilities(self, context: Context) -> Utilities:
        """Beliefs about every arm's reward for this request, shape (n_arms,); the pacer is not in them."""
        heads = self.heads.predict(context.x.astype(np.float64), self.step)
        counts = self.heads.counts(QUALITY, self.step)
        return self._scorer.utilities(heads, context.input_tokens, counts)

    def decide(self, prompt: Prompt | Context, rng: np.random.Generator, *, decision_id: str, ts: float) -> Decision:
        """The decision for one request, drawn with `rng` from the probabilities it carries. Changes nothing.

        Raises `NoFeasibleArm` when every arm is filtered and the pool's `on_infeasible` is `fail`, but for the probes'
        share of such requests: without them no arm could ever come back.
        """
        context = self.features.extract(prompt) if isinstance(prompt, Prompt) else prompt
        utilities = self.utilities(context)
        compliance = self.filters.compliance()
        feasible = compliance > 0
        infeasible = not feasible.any()
        if infeasible:
            p = self._all_filtered(rng)
        else:
            p = self.filters.shape(self.policy.probabilities(self._paced(utilities), compliance, self.step))
        cumulated = np.cumsum(p)
        chosen = int(np.searchsorted(cumulated, rng.random() * cumulated[-1], side="right"))
        return Decision(
            decision_id=decision_id,
            ts=ts,
            pool=self.name,
            mode="bandit",
            step=self.step,
            context=context,
            policy_version=self.policy.version,
            arms=self.names,
            feasible=feasible,
            probabilities=p,
            chosen=self.names[chosen],
            propensity=float(p[chosen]),
            predicted_quality=utilities.quality.astype(np.float32),  # half the digits in every log row
            predicted_cost_usd=utilities.cost_usd.astype(np.float32),
            predicted_latency_s=utilities.latency_s.astype(np.float32),
            pacer_multiplier=self.pacer.multiplier if self.pacer else 0.0,
            infeasible=infeasible,
        )

    def excess(self) -> dict[str, float]:
        """By how much each arm is over its limits, relative to the limit, the worst one; ≤ 0 means within all."""
        return {
            name: max((self._excess(arm, i, limit) for i, limit in enumerate(self.limits)), default=0.0)
            for arm, name in enumerate(self.names)
        }

    def advance(self) -> None:
        """Count one routed request: the pool's clock of forgetting moves on."""
        self.step += 1
        self.heads.refresh(self.step)

    def apply_outcome(self, decision: Decision, outcome: Outcome, *, replay: bool = False) -> list[Change]:
        """Learn from one attempt's outcome; returns what it changed about the arm's standing.

        A success teaches tokens, latency and cost. A failure the model is to blame for teaches quality 0 and counts
        against every limit but accuracy. A call the caller abandoned teaches nothing, unless it was already past a
        latency limit when abandoned. With `replay` drift is not acted upon: the log holds the resets as events of
        their own (`apply_reset`), so that a rebuilt pool equals the first.
        """
        arm = self._index.get(outcome.model)
        if arm is None or decision.context.version != self.features.version:
            return []
        changes = self._observe_limits(arm, outcome)
        x = decision.context.x.astype(np.float64)
        when = {"made_at": decision.step, "now": self.step}
        if outcome.failed:
            self.heads.observe(arm, x, {QUALITY: 0.0}, **when)
        if outcome.status != "ok":
            return changes
        if self.pacer is not None and outcome.cost_usd is not None:
            self.pacer.spend(outcome.cost_usd)
        if outcome.time_to_first_token_s is not None:
            self.time_to_first_token[arm].add(outcome.time_to_first_token_s)
        values = _head_values(outcome)
        if outcome.latency_s is None:
            self.heads.observe(arm, x, values, **when)
            return changes
        self.latency[arm].add(outcome.latency_s)
        residual = values[LATENCY] - self.heads.expect(LATENCY, arm, x, self.step)
        self.heads.observe(arm, x, values, **when)
        return changes + self._watch(LATENCY, arm, residual, replay=replay)

    def apply_feedback(
        self, decision: Decision, feedback: Feedback, *, model: str | None = None, replay: bool = False
    ) -> list[Change]:
        """Learn the quality of a decision's answer, given by `model` (default: the chosen one).

        A revision replaces the earlier value in the posterior as if it had come first; the accuracy limit's evidence
        keeps the first value, since a sequential test cannot take one back.
        """
        arm = self._index.get(model or decision.chosen)
        if arm is None or feedback.quality is None or decision.context.version != self.features.version:
            return []
        x = decision.context.x.astype(np.float64)
        when = {"made_at": decision.step, "now": self.step}
        if feedback.revises is not None:
            self.heads.revise(QUALITY, arm, x, old=feedback.revises, new=feedback.quality, **when)
            return []
        changes: list[Change] = []
        if self.constraints.accuracy_evidence != "benchmarks":
            changes += self._observe_accuracy(arm, feedback.quality)
        # Against what is known now, not at the decision: while a pool learns, late feedback would look like drift.
        residual = feedback.quality - self.heads.expect(QUALITY, arm, x, self.step)
        self.heads.observe(arm, x, {QUALITY: feedback.quality}, **when)
        return changes + self._watch(QUALITY, arm, residual, replay=replay)

    def apply_benchmark(self, model: str, quality: float) -> list[Change]:
        """Count one graded benchmark answer as evidence on the accuracy limit."""
        if model not in self._index:
            raise UnknownArm(model, self.names)
        if self.constraints.accuracy_evidence == "feedback":
            return []
        return list(self._observe_accuracy(self._index[model], quality))

    def apply_reset(self, model: str, head: str, change: float) -> list[Change]:
        """Act on drift of one head of an arm: reset the head, and restart evidence that the change has made stale."""
        arm, which = self._index.get(model), HEADS.index(head)
        if arm is None:
            return []
        self.heads.reset(which, arm, self.step)
        worse = change < 0 if which == QUALITY else change > 0
        state = self.filters.states[arm]
        changes: list[Change] = []
        # A filtered arm's evidence started when it was filtered. An admitted one keeps its certificate if it got better
        # or its recent calls still keep the limits: the detector of change is watching it anyway.
        doubtful = worse and self.filters.compliance()[arm] < 0.5
        if state in ("unknown", "probing") or (state == "admitted" and doubtful):
            for index, limit in enumerate(self.limits):
                if limit.head == which:
                    changes += self.filters.restart(arm, index, f"drift in {head}")
        return changes

    def state(self) -> dict[str, Any]:
        """All learned state, for `bandit.snapshot`; `load` is its inverse."""
        return {
            "format": _FORMAT,
            "arms": list(self.names),
            "features": self.features.version,
            "step": self.step,
            "heads": self.heads.state(),
            "filters": self.filters.state(),
            "drift": self.drift.state(),
            "latency": [q.values() for q in self.latency],
            "time_to_first_token": [q.values() for q in self.time_to_first_token],
            "pacer_multiplier": self.pacer.multiplier if self.pacer else 0.0,
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over learned state with the same features, or raise `SnapshotMismatch` and change nothing.

        Arms are matched by name: one that is new here starts from its prior, what was learned of one that left is lost.
        """
        for key, mine in (("format", _FORMAT), ("features", self.features.version)):
            if state.get(key) != mine:
                raise SnapshotMismatch(f"pool {self.name!r}: learned state has {key} {state.get(key)!r}, not {mine!r}")
        row_of = {name: row for row, name in enumerate(state["arms"])}
        rows = [row_of.get(name) for name in self.names]
        if all(row is None for row in rows):
            raise SnapshotMismatch(f"pool {self.name!r}: learned state has none of its arms")
        self.heads.load(rearranged(state["heads"], rows), state["step"])
        self.filters.load(self.filters.rearranged(state["filters"], rows))
        self.drift.load([[[] if row is None else values[row] for row in rows] for values in state["drift"]])
        for quantiles, saved in (
            (self.latency, state["latency"]),
            (self.time_to_first_token, state["time_to_first_token"]),
        ):
            for quantile, row in zip(quantiles, rows, strict=True):
                quantile.load([] if row is None else saved[row])
        self.step = state["step"]
        if self.pacer is not None:
            self.pacer.multiplier = state["pacer_multiplier"]

    def _paced(self, utilities: Utilities) -> Utilities:
        if self.pacer is None or self.pacer.multiplier == 0.0:
            return utilities
        cost = utilities.cost_usd
        known = np.where(np.isnan(cost), np.nanmax(cost) if not np.isnan(cost).all() else 0.0, cost)
        return replace(utilities, mean=utilities.mean - self.pacer.multiplier * known / self.pacer.usd_per_request)

    def _all_filtered(self, rng: np.random.Generator) -> FloatArray:
        """Probabilities where every arm is filtered: the least violating one but for the probes, or probes alone."""
        if self.constraints.on_infeasible == "fail":
            probes = self.filters.shape(np.zeros(len(self.arms)))
            if rng.random() >= probes.sum():
                raise NoFeasibleArm(self.excess())
            return np.asarray(probes / probes.sum())
        excess = self.excess()
        least = min(range(len(self.arms)), key=lambda arm: excess[self.names[arm]])
        return self.filters.shape(one_hot(least, len(self.arms)))

    def _excess(self, arm: int, index: int, limit: Limit) -> float:
        if limit.kind == "min_accuracy":
            return float(limit.bound - self.heads.averages(QUALITY, self.step)[arm]) / limit.bound
        if limit.kind == "max_error_rate":
            test = self.filters.evidence(arm, index)
            return test.rate / limit.rate - 1.0 if test.calls else 0.0
        quantile = self._window(limit)[arm]
        return quantile.get() / limit.bound - 1.0 if quantile.count else 0.0

    def _window(self, limit: Limit) -> list[RecentQuantile]:
        return self.latency if limit.kind == "p95_latency_s" else self.time_to_first_token

    def _observe_limits(self, arm: int, outcome: Outcome) -> list[Change]:
        changes: list[Change] = []
        for index, limit in enumerate(self.limits):
            bad = bad_call(limit, outcome)
            if bad is not None:
                changes += self.filters.observe(arm, index, bad)
            if outcome.failed and limit.head == LATENCY:  # slower than any answer: it must not look quick
                self._window(limit)[arm].add(_FAILURE_IN_BOUNDS * limit.bound)
        return changes

    def _observe_accuracy(self, arm: int, quality: float) -> list[Change]:
        for index, limit in enumerate(self.limits):
            if limit.kind == "min_accuracy":
                return list(self.filters.observe(arm, index, 1.0 - quality))
        return []

    def _watch(self, head: int, arm: int, residual: float, *, replay: bool) -> list[Change]:
        change = self.drift.update(head, arm, residual)
        if change == 0.0 or replay:
            return []
        reset = DriftReset(arm, HEADS[head], change)
        return [reset, *self.apply_reset(self.names[arm], HEADS[head], change)]


def _head_values(outcome: Outcome) -> dict[int, float]:
    """What a successful outcome teaches, by head."""
    values = {}
    if outcome.output_tokens is not None:
        values[TOKENS] = log1p(outcome.output_tokens)
    if outcome.latency_s is not None:
        values[LATENCY] = log(max(outcome.latency_s, _SHORTEST_S))
    return values
