"""A canary: one model on trial in a pool, given more traffic step by step as evidence comes in, or none at all.

A deterministic fold over decisions, outcomes and grades that proposes its moves; whoever keeps the log makes them. No
clock, no draw. Knows nothing of pools, requests or operators; the verdicts are `bandit.guardrails`' matter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import inf
from typing import Any, Final, Literal

from bandit.comparison import Side
from bandit.errors import InvalidInput
from bandit.guardrails import Check, Evidence, Guardrails
from bandit.types import Decision, Outcome

__all__ = ["Move", "Phase", "Plan", "Trial"]

Phase = Literal["running", "promoted", "rolled_back", "aborted", "released"]
What = Literal[
    "canary_step", "canary_held", "canary_promoted", "canary_rolled_back", "canary_aborted", "canary_released"
]
_LOOK_EVERY: Final = 20  # observations; at the canary's bad calls it is looked at once
_SAME_SHARE: Final = 1e-9
_ENDS: Final[Mapping[str, Phase]] = {
    "canary_promoted": "promoted",
    "canary_rolled_back": "rolled_back",
    "canary_aborted": "aborted",
    "canary_released": "released",
}


@dataclass(frozen=True, slots=True)
class Plan:
    """Which model is tried, with which shares of the pool's calls one after the other, and what decides.

    `compare_to`: a model that gets an equal share beside it as control; None: the control is every other call.
    `min_calls`, `min_graded`: what a step needs before the next. `hold_after_s`: how long until a step without progress
    is reported as held. `alpha`: error probability of each proof.
    """

    model: str
    shares: tuple[float, ...] = (0.01, 0.05, 0.25, 1.0)
    compare_to: str | None = None
    guardrails: Guardrails = field(default_factory=Guardrails)
    min_calls: int = 200
    min_graded: int = 200
    hold_after_s: float = 3600.0
    alpha: float = 0.01

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0.0, *self.shares), self.shares, strict=False))
        if not self.shares or not rising or self.shares[-1] > 1:
            raise InvalidInput("steps", "must rise, above 0 and up to 1")
        if self.compare_to == self.model:
            raise InvalidInput("compare_to", "must be another model than the canary")

    def to_row(self) -> dict[str, Any]:
        """As plain data; `from_row` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_row(row: Mapping[str, Any]) -> Plan:
        """A plan from plain data."""
        return Plan(**{**row, "shares": tuple(row["shares"]), "guardrails": Guardrails(**row["guardrails"])})

    def control_share(self, step: int) -> float:
        """The share of `compare_to` in a step: as much as the canary's, as far as there is any left."""
        share = self.shares[step]
        return 0.0 if self.compare_to is None else min(share, 1.0 - share)

    def controlled(self, step: int) -> bool:
        """Whether a step has a control at all: at a share of 1 nothing is left to compare with."""
        return step < len(self.shares) and self.shares[step] < 1.0


@dataclass(frozen=True, slots=True)
class Move:
    """A proposed change of a trial, and why; `Trial.apply` makes it."""

    what: What
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    reason: str


class Trial:
    """One run of a canary, from its start at unix time `ts`.

    *Shares.* While it runs, the pool's calls are drawn from (1 − s − c)·p_rest + s·e_canary + c·e_control, whatever
    p_rest does (`parts`); the policy itself leaves the canary alone. *Groups.* A call drawn on the canary had the
    probability s of it, whatever it asked. With `compare_to` a call on that model may be due to c or to p_rest, which
    may choose by context; its probability p was logged, so weighted by c/p ≤ 1 such calls stand for all calls of the
    pool, just as the canary's do. Without, the control is every call not drawn on the canary, which was left out at
    random. Only calls whose logged probabilities are these take part in comparisons: of the step, by time and share.

    *Steps.* The next share follows once the step has `min_calls` calls and `min_graded` grades in each group, and
    nothing is proved against the canary: a proof needs as many of its calls at any share, so waiting for one at a small
    share spares nobody. But the step to a share of 1, or out of the trial, needs every guardrail proved, since then
    there is nothing left to compare with. A broken guardrail ends it at once, in any step.
    """

    def __init__(self, plan: Plan, ts: float) -> None:
        self.plan = plan
        self.phase: Phase = "running"
        self.step = 0
        self.step_ts = [ts]
        self.held: str | None = None
        self._evidence = Evidence(plan.guardrails, plan.alpha)
        self._unseen = 0

    @property
    def running(self) -> bool:
        """Whether it takes traffic as a canary."""
        return self.phase == "running"

    @property
    def keeps_out(self) -> bool:
        """Whether the policy must leave the model alone: while it is on trial, and after it failed."""
        return self.phase in ("running", "rolled_back", "aborted")

    @property
    def share(self) -> float:
        """The canary's share of calls now."""
        return self.plan.shares[self.step] if self.running else 0.0

    def parts(self) -> tuple[tuple[str, float], ...]:
        """(model, share) each, of what is mixed into the pool's choice."""
        if not self.running:
            return ()
        parts = [(self.plan.model, self.share)]
        if (control := self.plan.control_share(self.step)) > 0.0 and self.plan.compare_to is not None:
            parts.append((self.plan.compare_to, control))
        return tuple(parts)

    def observe(self, decision: Decision, outcome: Outcome) -> Move | None:
        """Take in the first attempt of a call of the pool; returns the move it leads to, if any."""
        if not self.running or decision.mode != "canary" or outcome.attempt or outcome.model != decision.chosen:
            return None
        bad, mine = False, outcome.model == self.plan.model and decision.ts >= self.step_ts[0]
        if mine:
            bad = self._evidence.called(outcome)
        placed = self._placed(decision)
        if placed is not None:
            self._evidence.compare(outcome, *placed)
        return self._looked(at_once=bad) if mine or placed is not None else None

    def grade(self, decision: Decision, quality: float) -> Move | None:
        """Take in the quality of the answer that the chosen model gave; returns the move it leads to, if any."""
        if not self.running or decision.mode != "canary" or (placed := self._placed(decision)) is None:
            return None
        self._evidence.graded(quality, *placed)
        return self._looked()

    def tick(self, now: float) -> Move | None:
        """What is due at unix time `now`: a look, and the report that a step makes no progress."""
        if not self.running:
            return None
        move = self._look()
        if move is None and self.held is None and now - self.step_ts[-1] >= self.plan.hold_after_s:
            reason = f"no step for {self.plan.hold_after_s:g} s: " + "; ".join(self.needs())
            return Move("canary_held", self.place(), self.place() | {"held": reason}, reason)
        return move

    def end(self, what: What, reason: str) -> Move:
        """The move that ends it: promotion, rollback, abortion, or the release of a model that was kept out."""
        return Move(what, self.place(), {"phase": _ENDS[what], "step": self.step, "share": 0.0}, reason)

    def apply(self, what: str, after: Mapping[str, Any], ts: float) -> None:
        """Make a move, at the unix time at which it was logged."""
        if what == "canary_step":
            self.step = int(after["step"])
            self.step_ts.append(ts)
            self.held = None
        elif what == "canary_held":
            self.held = str(after["held"])
        elif what in _ENDS:
            self.phase = _ENDS[what]
            self.held = None

    def place(self) -> dict[str, Any]:
        """Where it stands, for the log."""
        return {"phase": self.phase, "step": self.step, "share": self.share}

    def needs(self) -> list[str]:
        """What the next step still waits for, in words."""
        if not self.running:
            return []
        plan, evidence = self.plan, self._evidence
        needs = []
        if (short := plan.min_calls - evidence.calls("treated", self.step)) > 0:
            needs.append(f"needs {short} more calls of {plan.model}")
        if plan.guardrails.max_quality_loss is not None:
            if (short := plan.min_graded - evidence.grades("treated", self.step)) > 0:
                needs.append(f"needs {short} more graded calls of {plan.model}")
            if plan.controlled(self.step) and (short := plan.min_graded - evidence.grades("control", self.step)) > 0:
                needs.append(f"needs {short} more graded calls of the control")
        if not plan.controlled(self.step + 1):
            needs += [f"{check.text}: not proved" for check in self.checks() if check.verdict == "open"]
        return needs

    def checks(self) -> list[Check]:
        """Every guardrail with its verdict and figures."""
        return self._evidence.checks(None if self.plan.controlled(self.step) else self.step)

    def summary(self) -> dict[str, Any]:
        """Figures to show."""
        return self._evidence.summary()

    def state(self) -> dict[str, Any]:
        """Everything as plain data; `from_state` is its inverse."""
        return {
            "plan": self.plan.to_row(),
            "phase": self.phase,
            "step": self.step,
            "step_ts": list(self.step_ts),
            "held": self.held,
            "unseen": self._unseen,
            "evidence": self._evidence.state(),
        }

    @staticmethod
    def from_state(state: Mapping[str, Any]) -> Trial:
        """The trial whose `state` this was."""
        trial = Trial(Plan.from_row(state["plan"]), 0.0)
        trial.phase, trial.step, trial.held = state["phase"], state["step"], state["held"]
        trial.step_ts, trial._unseen = list(state["step_ts"]), state["unseen"]
        trial._evidence.load(state["evidence"])
        return trial

    def _placed(self, decision: Decision) -> tuple[Side, int, float] | None:
        """(group, step, weight) of a call whose logged probabilities are those of a step; None: of none."""
        plan = self.plan
        step = next((j for j in range(self.step, -1, -1) if decision.ts >= self.step_ts[j]), None)
        if step is None or abs(_share_of(plan.model, decision) - plan.shares[step]) > _SAME_SHARE:
            return None
        mine = decision.chosen == plan.model
        if plan.compare_to is None or not plan.controlled(step):
            return "treated" if mine else "control", step, 1.0
        control, p = plan.control_share(step), _share_of(plan.compare_to, decision)
        if p < control - _SAME_SHARE:  # it could take no call: none to compare this one with
            return None
        if mine:
            return "treated", step, 1.0
        return ("control", step, control / p) if decision.chosen == plan.compare_to else None

    def _looked(self, *, at_once: bool = False) -> Move | None:
        self._unseen += 1
        return self._look() if at_once or self._unseen >= _LOOK_EVERY else None

    def _look(self) -> Move | None:
        """The move that the evidence so far leads to."""
        self._unseen = 0
        checks = self.checks()
        broken = [check.text for check in checks if check.verdict == "broken"]
        if broken:
            return self.end("canary_rolled_back", "; ".join(broken))
        if not self._enough():
            return None
        plan, following = self.plan, self.step + 1
        if not plan.controlled(following) and any(check.verdict == "open" for check in checks):
            return None
        reason = "; ".join(check.text for check in checks) or f"{plan.min_calls} calls"
        if following == len(plan.shares):
            return self.end("canary_promoted", reason)
        after = {"phase": self.phase, "step": following, "share": plan.shares[following]}
        return Move("canary_step", self.place(), after, reason)

    def _enough(self) -> bool:
        plan, evidence, step = self.plan, self._evidence, self.step
        if evidence.calls("treated", step) < plan.min_calls:
            return False
        if plan.guardrails.max_quality_loss is None:
            return True
        control = evidence.grades("control", step) if plan.controlled(step) else inf
        return min(evidence.grades("treated", step), control) >= plan.min_graded


def _share_of(model: str, decision: Decision) -> float:
    return float(decision.probabilities[decision.arms.index(model)]) if model in decision.arms else 0.0
