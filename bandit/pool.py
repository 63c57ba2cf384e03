"""One pool: features → filters → policy → draw, and everything learned from what comes back.

`decide` reads the learned state and changes nothing; the `apply_*` methods are the only ones that change it, and are a
deterministic fold over decisions, outcomes and feedback in their logged order. Replaying a log therefore rebuilds the
pool. No clock, no id and no random number is made here: they are arguments.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from bandit._mixing import drawn
from bandit.allowance import known_cost, within_budget, within_limits
from bandit.errors import NoFeasibleArm, UnknownArm
from bandit.filters import Transition
from bandit.lessons import booked_usd, head_values, log_ratios
from bandit.members import Members
from bandit.pacing import Pacer
from bandit.policy import one_hot
from bandit.posterior import HEADS, QUALITY
from bandit.scorer import Utilities
from bandit.steering import UNSTEERED, Steer, fixed_shares, kept_arm, mixed
from bandit.types import BoolArray, Context, Decision, Feedback, FloatArray, Outcome, Prompt, RequestLimits

__all__ = ["DriftReset", "Pool"]

_STILL_EXPLORED = 0.2  # of the traffic, where probably no arm keeps its limits, though not all are proved not to
_BENCHMARK_ANSWERS = 500.0  # as a warm start's effective samples
_NO_LIMITS = RequestLimits()


@dataclass(frozen=True, slots=True)
class DriftReset:
    """A head of an arm was pulled towards its prior: realised minus predicted moved by `change` (its own unit)."""

    arm: int
    head: str
    change: float


Change = Transition | DriftReset


@dataclass(frozen=True, slots=True)
class _Distribution:
    """`stays`: it is one arm, kept for a session or a tool loop."""

    p: FloatArray
    feasible: BoolArray
    infeasible: bool
    withheld_usd: float = 0.0
    stays: bool = False


class Pool(Members):
    """A set of arms with an objective, limits and a policy; chooses for each request and learns.

    In five lines: make it, `decision = pool.choose(prompt, rng)`, call the model, `pool.update(decision, quality=…,
    latency_s=…, output_tokens=…)`. A service uses `decide` and the `apply_*` methods, which take its ids and clock.
    Arms may join and leave: see `bandit.members`.
    """

    def choose(self, prompt: Prompt | Context, rng: np.random.Generator) -> Decision:
        """Decide and count the request; for use as a library (ids are the pool's step, time is not looked at)."""
        decision = self.decide(prompt, rng, decision_id=f"{self.name}-{self.step}", ts=0.0)
        self.advance(decision)
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
        return self._scorer.utilities(heads, context.input_tokens, self.heads.counts(QUALITY, self.step))

    def upper_bounds(self, context: Context) -> tuple[FloatArray, FloatArray]:
        """What 95 of 100 requests like this stay below, by arm: (cost in USD, NaN where unknown; latency in s)."""
        utilities = self.utilities(context)
        return self.bounds.of(utilities.cost_usd, utilities.latency_s, utilities.log_sd)

    def decide(
        self,
        prompt: Prompt | Context,
        rng: np.random.Generator,
        *,
        decision_id: str,
        ts: float,
        limits: RequestLimits = _NO_LIMITS,
        steer: Steer = UNSTEERED,
    ) -> Decision:
        """The decision for one request, drawn with `rng` from the probabilities it carries. Changes nothing.

        `limits` are this request's own, `steer` what stands above the policy. Raises `NoFeasibleArm` when no arm is
        available; when every arm is filtered and the pool's `on_infeasible` is `fail`, but for the probes' share of
        such requests: without them no arm could ever come back; and where `fail` is set and no arm is expected to keep
        the request's own limits.
        """
        context = self.features.extract(prompt) if isinstance(prompt, Prompt) else prompt
        utilities = self.utilities(context)
        to = self._distribution(rng, utilities, limits, steer)
        p = to.p
        chosen = drawn(p, rng.random())
        return Decision(
            decision_id=decision_id,
            ts=ts,
            pool=self.name,
            mode="sticky" if to.stays else steer.mode,
            step=self.step,
            context=context,
            policy_version=self.policy.version,
            arms=self.names,
            feasible=to.feasible,
            probabilities=p,
            chosen=self.names[chosen],
            propensity=float(p[chosen]),
            predicted_quality=utilities.quality.astype(np.float32),  # half the digits in every log row
            predicted_cost_usd=utilities.cost_usd.astype(np.float32),
            predicted_latency_s=utilities.latency_s.astype(np.float32),
            pacer_multiplier=self.pacer.multiplier if self.pacer else 0.0,
            infeasible=to.infeasible,
            withheld_usd=to.withheld_usd,
        )

    def expected_cost(self, context: Context) -> float:
        """What the policy is expected to spend on a request at the present multiplier, in USD; the bucket left out."""
        utilities = self.utilities(context)
        p = self.policy.probabilities(self._paced(utilities), self.filters.compliance(), self.step)
        return float(p @ known_cost(utilities.cost_usd))

    def advance(self, decision: Decision, *, expected_usd: float | None = None) -> None:
        """Count one routed request: the pool's clock of forgetting moves on, and the budget books it.

        At what its arm is expected to cost, or at `expected_usd`: see `spent_usd` of `apply_outcome`.
        """
        if self.pacer is not None:
            self.pacer.reserve(self.step, booked_usd(decision) if expected_usd is None else expected_usd)
        self.step += 1
        self.heads.refresh(self.step)

    def apply_outcome(
        self,
        decision: Decision,
        outcome: Outcome,
        *,
        replay: bool = False,
        spent_usd: tuple[float, float | None] | None = None,
        booked: bool = True,
    ) -> list[Change]:
        """Learn from one attempt's outcome; returns what it changed about the arm's standing.

        A success teaches tokens, latency and cost. A failure the model is to blame for teaches quality 0 and counts
        against every limit but accuracy. A call the caller abandoned teaches nothing, unless it was already past a
        latency limit when abandoned. With `replay` drift is told and not acted upon: a log holds the resets as
        events of their own (`apply_reset`), so that a rebuilt pool equals the first. `spent_usd`: what the budget
        booked and pays instead of the decision's and the outcome's cost, for a pool that learns from what another one
        chose. `booked` False: the decision is none of the budget's.
        """
        if decision.context.version != self.features.version:
            return []  # made by other features: its steps, too, may be those of another life of this pool
        if booked and self.pacer is not None:
            self._settle(self.pacer, decision, outcome, spent_usd)
        arm = self._index.get(outcome.model)
        if arm is None:
            return []
        changes: list[Change] = [*self.standing.observe(arm, outcome)]
        x = decision.context.x.astype(np.float64)
        when = {"made_at": decision.step, "now": self.step}
        if outcome.failed:
            self.heads.observe(arm, x, {QUALITY: 0.0}, **when)
        if outcome.status != "ok":
            return changes
        values = head_values(outcome, self.arms[arm].price, decision.context.input_tokens)
        residuals = {head: y - self.heads.expect(head, arm, x, self.step) for head, y in values.items()}
        self.heads.observe(arm, x, values, **when)
        for row, log_ratio in log_ratios(decision, outcome).items():
            self.bounds.observe(row, arm, log_ratio)
        for head, residual in residuals.items():
            changes += self._watch(head, arm, residual, replay=replay)
        return changes

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
            changes += self.standing.observe_accuracy(arm, feedback.quality)
        # Against what is known now, not at the decision: while a pool learns, late feedback would look like drift.
        residual = feedback.quality - self.heads.expect(QUALITY, arm, x, self.step)
        self.heads.observe(arm, x, {QUALITY: feedback.quality}, **when)
        self.newcomers.graded(self.names[arm], float(self.heads.counts(QUALITY, self.step)[arm]))
        return changes + self._watch(QUALITY, arm, residual, replay=replay)

    def apply_benchmark(self, model: str, quality: float, category: str | None = None) -> list[Change]:
        """Learn one graded benchmark answer: evidence on the accuracy limit, and a warm start of the quality head.

        The head learns in the context of `category` alone, and only while an arm's graded answers of all kinds count
        for fewer than 500 (discounted): a suite's prompts are not the traffic, and must not outweigh it. The limit's
        evidence has no such bound. Not watched for drift, which is the traffic's. Raises `UnknownArm`.

        Where the test's promise stops: it takes answers for draws from one population. A suite asked again repeats its
        items, and so part of its evidence, and a certificate holds for prompts like the suite's.
        """
        if model not in self._index:
            raise UnknownArm(model, self.names)
        arm = self._index[model]
        if float(self.heads.counts(QUALITY, self.step)[arm]) < _BENCHMARK_ANSWERS:
            x = self.features.extract(Prompt(category=category)).x.astype(np.float64)
            self.heads.observe(arm, x, {QUALITY: quality}, made_at=self.step, now=self.step)
        if self.constraints.accuracy_evidence == "feedback":
            return []
        return [*self.standing.observe_accuracy(arm, quality)]

    def apply_reset(self, model: str, head: str, change: float) -> list[Change]:
        """Act on drift of one head of an arm: reset the head, and restart evidence that the change has made stale."""
        arm, which = self._index.get(model), HEADS.index(head)
        if arm is None:
            return []
        self.heads.reset(which, arm, self.step)
        worse = change < 0 if which == QUALITY else change > 0
        return [*self.standing.drifted(arm, which, f"drift in {head}", worse=worse)]

    def _distribution(
        self, rng: np.random.Generator, utilities: Utilities, limits: RequestLimits, steer: Steer
    ) -> _Distribution:
        """What the arm is drawn from: the policy's choice or what is fixed above it, with every mixture in it."""
        compliance, open_to = self.filters.compliance(), steer.open
        able = compliance > 0.0 if steer.available is None else (compliance > 0.0) & steer.available
        feasible = able
        if open_to is not None:
            compliance = compliance * open_to
            feasible = compliance > 0.0
        infeasible, withheld_usd = not feasible.any(), 0.0
        if infeasible:
            parts = tuple(part for part in steer.mixed if able[part[0]])
            p = np.zeros(len(self.arms)) if parts else self._all_filtered(rng, open_to)
            return _Distribution(mixed(p, parts, able), able, infeasible=not parts)
        allowed, infeasible = self._allowed(feasible, limits, utilities)
        if open_to is not None:
            allowed = open_to if allowed is None else allowed & open_to
        usable = feasible if allowed is None else feasible & allowed
        stays = kept_arm(utilities.mean, usable, steer)
        if stays is not None:
            return _Distribution(one_hot(stays, len(self.arms)), usable, infeasible, stays=True)
        if steer.shares is not None:
            p = self.filters.probed(fixed_shares(steer.shares, compliance * usable), allowed)
        else:
            p, withheld_usd = self._probabilities(self._paced(utilities), compliance, allowed)
            if not infeasible and self.filters.hopeless and self.constraints.on_infeasible == "least_violation":
                p = self._mostly_least_violating(p, usable)
                infeasible = True
        p = mixed(p, steer.mixed, able)
        if usable is not able:  # there may be a share for an arm that is not
            usable = usable | (able & (p > 0.0))
        return _Distribution(p, usable, infeasible, withheld_usd)

    def _settle(
        self, pacer: Pacer, decision: Decision, outcome: Outcome, spent_usd: tuple[float, float | None] | None
    ) -> None:
        """Let the budget pay for an attempt what it cost."""
        if spent_usd is not None:
            pacer.settle(decision.step, self.step, *spent_usd, decision.withheld_usd)
            return
        known = 0.0 if outcome.cost_usd is None and outcome.status in ("error", "timeout") else outcome.cost_usd
        if outcome.attempt == 0:
            pacer.settle(decision.step, self.step, booked_usd(decision), known, decision.withheld_usd)
        else:
            pacer.settle_more(decision.step, self.step, known)

    def _paced(self, utilities: Utilities) -> Utilities:
        """Utilities with the budget's price on cost, and a floor that spends at most its share of the budget."""
        if self.pacer is None:
            return utilities
        relative = known_cost(utilities.cost_usd) / self.pacer.usd_per_request
        return replace(
            utilities,
            mean=utilities.mean - self.pacer.multiplier * relative,
            floor_weights=1.0 / np.maximum(relative, 1.0),
        )

    def _allowed(
        self, feasible: BoolArray, limits: RequestLimits, utilities: Utilities
    ) -> tuple[BoolArray | None, bool]:
        """Which arms keep the request's own limits and the budget; whether no feasible one keeps its limits.

        None where there are neither. Filtered arms too are judged: their probes cost money and time like any call.
        """
        if self.pacer is None and not limits.set:
            return None, False
        allowed, infeasible = np.ones_like(feasible), False
        if limits.set:
            over = limits.excess(*self.bounds.of(utilities.cost_usd, utilities.latency_s, utilities.log_sd))
            allowed = within_limits(feasible, over)
            infeasible = bool(over[allowed].max() > 0.0)
            if infeasible and self.constraints.on_infeasible == "fail":
                raise NoFeasibleArm(dict(zip(self.names, over.tolist(), strict=True)))
        if self.pacer is not None:
            worst_usd = self.bounds.worst_cost(utilities.cost_usd, utilities.log_sd)
            allowed = within_budget(
                feasible, allowed, self.pacer, self.step, worst_usd=worst_usd, expected_usd=utilities.cost_usd
            )
        return allowed, infeasible

    def _probabilities(
        self, utilities: Utilities, compliance: FloatArray, allowed: BoolArray | None
    ) -> tuple[FloatArray, float]:
        """Action probabilities, and by how much (USD) what is not allowed lowered the expected cost.

        The multiplier needs the latter: while the bucket withholds dear arms, low spending is no reason to lower λ.
        """
        if allowed is None or not (compliance > allowed).any():
            p, withheld_usd = self.policy.probabilities(utilities, compliance, self.step), 0.0
            return self.filters.shape(self.newcomers.capped(p, self.names), allowed), withheld_usd
        wanted = self.policy.probabilities(utilities, compliance, self.step)
        p = self.policy.probabilities(utilities, compliance * allowed, self.step)
        withheld_usd = max(0.0, float((wanted - p) @ known_cost(utilities.cost_usd)))
        return self.filters.shape(self.newcomers.capped(p, self.names), allowed), withheld_usd

    def _mostly_least_violating(self, p: FloatArray, feasible: BoolArray) -> FloatArray:
        """Most of the traffic of arms not filtered to the least violating one; the rest as `p`, to see who recovers."""
        over = np.where(feasible, self.standing.excess(self.heads.averages(QUALITY, self.step)), np.inf)
        kept = np.where(feasible, _STILL_EXPLORED, 1.0) * p
        return np.asarray(kept + (1.0 - kept.sum()) * one_hot(int(over.argmin()), over.size))

    def _all_filtered(self, rng: np.random.Generator, open_to: BoolArray | None) -> FloatArray:
        """Probabilities where every arm is filtered: the least violating one but for the probes, or probes alone."""
        excess = self.excess()
        if open_to is not None and not open_to.any():
            raise NoFeasibleArm(excess)
        if self.constraints.on_infeasible == "fail":
            probes = self.filters.probed(np.zeros(len(self.arms)), open_to)
            if rng.random() >= probes.sum():
                raise NoFeasibleArm(excess)
            return np.asarray(probes / probes.sum())
        arms = range(len(self.arms)) if open_to is None else np.flatnonzero(open_to).tolist()
        least = min(arms, key=lambda arm: excess[self.names[arm]])
        return self.filters.probed(one_hot(least, len(self.arms)), open_to)

    def _watch(self, head: int, arm: int, residual: float, *, replay: bool) -> list[Change]:
        change = self.drift.update(head, arm, residual)
        if change == 0.0:
            return []
        reset = DriftReset(arm, HEADS[head], change)
        return [reset] if replay else [reset, *self.apply_reset(self.names[arm], HEADS[head], change)]
