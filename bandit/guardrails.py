"""The guardrails of a canary: what is tested, on which evidence, and what each verdict says in words.

Each is proved kept, proved broken, or open; every proof holds whenever one looks. Knows nothing of steps or shares, nor
of what follows from a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log
from typing import Any, Final, Literal

from bandit.comparison import Comparison, Side
from bandit.errors import InvalidInput
from bandit.evidence import RateTest
from bandit.limits import bad_call, limits_of
from bandit.types import Constraints, Outcome

__all__ = ["Check", "Evidence", "Guardrails"]

Verdict = Literal["kept", "broken", "open"]
_CHANGED: Final = 1e6  # calls between false alarms of the detector of change
_COST_RESOLUTION: Final = 0.02  # at least: a finer one would never be resolved


@dataclass(frozen=True, slots=True)
class Guardrails:
    """What a canary must keep; None: not looked at.

    Absolute limits on its own calls: `max_error_rate`, and `p95_latency_s` (at most 5 % of calls slower). Against the
    control: `max_error_increase` (of the error rate), `max_quality_loss` (of mean quality) and `max_cost_increase` (of
    mean cost, relative).

    A loss of quality or a rise of errors as large as stated is never promoted but with probability α, and a canary that
    is as good as the control never rolled back but with probability α; what lies between may end either way. A cost
    within `max_cost_increase` is never rolled back but with probability α: dearer is allowed, worse is only tolerated.
    """

    max_error_rate: float | None = None
    p95_latency_s: float | None = None
    max_error_increase: float | None = 0.02
    max_quality_loss: float | None = 0.02
    max_cost_increase: float | None = None

    def __post_init__(self) -> None:
        for name in ("max_error_rate", "max_error_increase", "max_quality_loss"):
            value = getattr(self, name)
            if value is not None and not 1e-6 <= value < 1:
                raise InvalidInput(f"guardrails.{name}", "must be above 0 and below 1")
        if self.max_cost_increase is not None and not 0 <= self.max_cost_increase <= 1000:
            raise InvalidInput("guardrails.max_cost_increase", "must be at least 0")


@dataclass(frozen=True, slots=True)
class Check:
    """A guardrail's verdict, with its figures in words."""

    name: str
    verdict: Verdict
    text: str


class Evidence:
    """What came of a canary's calls and its control's, and what that says of each guardrail at error probability α."""

    def __init__(self, guardrails: Guardrails, alpha: float) -> None:
        self._guardrails, self._alpha = guardrails, alpha
        self._limits = limits_of(
            Constraints(max_error_rate=guardrails.max_error_rate, p95_latency_s=guardrails.p95_latency_s)
        )
        self._tests = [RateTest(limit.rate) for limit in self._limits]
        self.errors = Comparison(guardrails.max_error_increase or 0.02)
        self.quality = Comparison(guardrails.max_quality_loss or 0.02)
        self.cost = Comparison(max(guardrails.max_cost_increase or 0.1, _COST_RESOLUTION), relative=True)

    def called(self, outcome: Outcome) -> bool:
        """One call of the canary, for its absolute limits; returns whether it was bad under any, or failed."""
        worst = outcome.failed
        for limit, test in zip(self._limits, self._tests, strict=True):
            bad = bad_call(limit, outcome)
            if bad is not None:
                test.add(bad)
                worst = worst or bad > 0.0
        return worst

    def compare(self, outcome: Outcome, side: Side, stratum: int, weight: float) -> None:
        """One call of either group: whether it failed, and what it cost if it did not."""
        if outcome.failed or outcome.status == "ok":
            self.errors.add(side, float(outcome.failed), stratum=stratum, weight=weight)
        if outcome.status == "ok" and outcome.cost_usd is not None:
            self.cost.add(side, outcome.cost_usd, stratum=stratum, weight=weight)

    def graded(self, quality: float, side: Side, stratum: int, weight: float) -> None:
        """The quality of an answer of either group."""
        self.quality.add(side, quality, stratum=stratum, weight=weight)

    def calls(self, side: Side, stratum: int) -> int:
        """How many calls of a group have come to an end in a stratum."""
        return self.errors.count(side, stratum)

    def grades(self, side: Side, stratum: int) -> int:
        """How many answers of a group in a stratum have been graded."""
        return self.quality.count(side, stratum)

    def checks(self, uncontrolled: int | None = None) -> list[Check]:
        """Every guardrail that is set; `uncontrolled`: the stratum now running without a control, if it does.

        There, what was proved in comparison stands, and is broken only where the canary is proved worse than the
        earlier control by more than is allowed: the two saw different hours.
        """
        rails = self._guardrails
        checks = [self._absolute(i) for i in range(len(self._limits))]
        if rails.max_error_increase is not None:
            checks.append(self._loss("errors", self.errors, rails.max_error_increase, uncontrolled))
        if rails.max_quality_loss is not None:
            checks.append(self._loss("quality", self.quality, rails.max_quality_loss, uncontrolled))
        if rails.max_cost_increase is not None:
            checks.append(self._dearer(rails.max_cost_increase, uncontrolled))
        return checks

    def summary(self) -> dict[str, Any]:
        """Figures to show: of the canary's own limits, and of each comparison, at 1 − 2α confidence."""
        limits = {
            limit.kind: {"limit": limit.bound, "calls": test.calls, "rate": test.rate if test.calls else None}
            for limit, test in zip(self._limits, self._tests, strict=True)
        }
        compared = {"errors": self.errors, "quality": self.quality, "cost": self.cost}
        return limits | {name: dict(comparison.summary(self._alpha)) for name, comparison in compared.items()}

    def state(self) -> dict[str, Any]:
        """Everything as plain data; `load` is its inverse."""
        return {
            "tests": [test.state() for test in self._tests],
            "errors": self.errors.state(),
            "quality": self.quality.state(),
            "cost": self.cost.state(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the state of evidence under the same guardrails."""
        for test, saved in zip(self._tests, state["tests"], strict=True):
            test.load(saved)
        for name, comparison in (("errors", self.errors), ("quality", self.quality), ("cost", self.cost)):
            comparison.load(state[name])

    def _absolute(self, index: int) -> Check:
        limit, test = self._limits[index], self._tests[index]
        seen = f"{test.rate:.2%} of {test.calls} calls" if test.calls else "no calls"
        if limit.kind == "max_error_rate":
            text = f"error rate at most {limit.bound:.2%}: {seen} failed"
        else:
            text = f"p95 latency at most {limit.bound:g} s: {seen} slower"
        sure = -log(self._alpha)
        if test.calls and (test.log_evidence("violating") >= sure or test.change >= _CHANGED):
            return Check(limit.kind, "broken", text)
        kept = bool(test.calls) and test.log_evidence("compliant") >= sure
        return Check(limit.kind, "kept" if kept else "open", text)

    def _loss(self, name: str, comparison: Comparison, most: float, uncontrolled: int | None) -> Check:
        """Errors or quality: broken where worse is proved before "worse by less than `most`" is."""
        sign = 1.0 if name == "errors" else -1.0
        low, high = comparison.interval(self._alpha)
        verdict: Verdict = "open"
        if (high if sign > 0 else -low) < most:
            verdict = "kept"
        elif (low if sign > 0 else -high) > 0.0:
            verdict = "broken"
        if uncontrolled is not None:
            low, high = comparison.against_earlier(uncontrolled, self._alpha)
            verdict = "broken" if (low if sign > 0 else -high) > most else "kept"
        what = "error rate rises by less than" if sign > 0 else "quality falls by less than"
        return Check(
            f"max_{'error_increase' if sign > 0 else 'quality_loss'}", verdict, _text(comparison, what, most, low, high)
        )

    def _dearer(self, most: float, uncontrolled: int | None) -> Check:
        low, high = self.cost.interval(self._alpha, factor=1.0 + most)
        verdict: Verdict = "kept" if high < 0.0 else "broken" if low > 0.0 else "open"
        if uncontrolled is not None:
            low, _ = self.cost.against_earlier(uncontrolled, self._alpha, factor=1.0 + most)
            verdict = "broken" if low > 0.0 else "kept"
        shown = self.cost.interval(self._alpha)
        return Check("max_cost_increase", verdict, _text(self.cost, "mean cost rises by at most", most, *shown))


def _text(comparison: Comparison, what: str, most: float, low: float, high: float) -> str:
    treated, control = comparison.count("treated"), comparison.count("control")
    if not low > -1e300:
        return f"{what} {most:g}: {treated} calls of the canary and {control} of the control say nothing yet"
    return f"{what} {most:g}: changed by {low:+.4f} to {high:+.4f} ({treated} calls against {control})"
