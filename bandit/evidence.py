"""Evidence on one limit of one arm: an anytime-valid test of the rate of bad calls, and a detector of its change.

Owns the statistics and their sources. Knows nothing of arms, states or what follows from a proof.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log, log1p
from typing import Literal

from scipy.special.cython_special import betainc, betaincc, betaln  # for single numbers: half the time

from bandit.errors import InvalidInput, SnapshotMismatch

__all__ = ["Proof", "RateTest"]

_FADE = 0.5 ** (1 / 150)  # how calls fade in the belief of compliance
# Of the way from the limit to 1. Lists, not arrays: for twelve numbers they take half the time.
_ALTERNATIVES = (0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 0.95)
Proof = Literal["violating", "compliant"]


class RateTest:
    """Anytime-valid test of "the mean of x in [0, 1] is at most r0", both ways, with a detector of change.

    *Since the last restart*: e-processes against the boundary rate with a Beta(1/2, 1/2) mixture over the
    alternatives on one side of r0 (closed form by the incomplete beta function):

        E = [B(s+½, n−s+½) / B(½, ½)] · [I(s+½, n−s+½) / I(½, ½)] / (r0^s (1−r0)^(n−s)),

    s = Σx, I the regularised incomplete beta function, over (r0, 1) for "violating", (0, r0) for "compliant".
    By Ville's inequality either passes 1/α with probability at most α if its null is true, whenever one looks (Robbins
    1970; Howard et al. 2021). For x not 0/1 it stays a supermartingale: the likelihood ratio is convex in x.

    *Change*: a Shiryaev-Roberts e-detector `R ← (1 + R)·LR(x)`, averaged over twelve alternatives above r0 (Shin,
    Ramdas & Rinaldo, 2023). At the limit it raises a false alarm within T calls with probability ≤ T/threshold, and a
    long good history does not hide a change: from 4 % to 99 % bad calls takes about six.

    What it does not say: the rate is that of the traffic the arm was *sent*; another mix may have another rate.
    """

    __slots__ = (
        "_bad_ratio",
        "_good_ratio",
        "_prior_good",
        "_recent_bad",
        "_recent_calls",
        "_shiryaev",
        "bad",
        "calls",
        "limit_rate",
    )

    def __init__(self, limit_rate: float) -> None:
        if not 0 < limit_rate < 1:
            raise InvalidInput("limit_rate", "must be between 0 and 1")
        self.limit_rate = limit_rate
        alternatives = [limit_rate + (1 - limit_rate) * part for part in _ALTERNATIVES]
        self._bad_ratio = [rate / limit_rate for rate in alternatives]
        self._good_ratio = [(1 - rate) / (1 - limit_rate) for rate in alternatives]
        self._prior_good = log(0.5) / log1p(-limit_rate)
        self.restart()

    def restart(self) -> None:
        """Forget all evidence."""
        self.calls = 0
        self.bad = 0.0
        self._recent_calls = 0.0
        self._recent_bad = 0.0
        self._shiryaev = [0.0] * len(_ALTERNATIVES)

    def add(self, x: float) -> None:
        """One more call: x = 1 for a bad one, 0 for a good one, or a value between (1 − quality)."""
        self.calls += 1
        self.bad += x
        self._recent_calls = self._recent_calls * _FADE + 1.0
        self._recent_bad = self._recent_bad * _FADE + x
        if x == 0.0:  # nearly all calls are plainly good or bad
            self._shiryaev = [(1.0 + r) * good for r, good in zip(self._shiryaev, self._good_ratio)]  # noqa: B905
            return
        ratios = self._bad_ratio
        if x != 1.0:
            ratios = [bad**x * good ** (1.0 - x) for bad, good in zip(ratios, self._good_ratio, strict=True)]
        self._shiryaev = [min((1.0 + r) * ratio, 1e30) for r, ratio in zip(self._shiryaev, ratios, strict=True)]

    @property
    def rate(self) -> float:
        """Observed rate since the last restart; NaN before the first call."""
        return self.bad / self.calls if self.calls else float("nan")

    @property
    def change(self) -> float:
        """The e-detector's value."""
        return sum(self._shiryaev) / len(self._shiryaev)

    def log_evidence(self, side: Proof, against_rate: float | None = None) -> float:
        """Natural log of the e-value for `side` against the rate r0 (or another boundary)."""
        r0 = self.limit_rate if against_rate is None else against_rate
        a, b = self.bad + 0.5, self.calls - self.bad + 0.5
        tail = betaincc if side == "violating" else betainc
        mass = float(tail(a, b, r0))
        if mass <= 0.0:
            return -inf
        null = self.bad * log(r0) + (self.calls - self.bad) * log1p(-r0)
        return float(betaln(a, b) - betaln(0.5, 0.5)) + log(mass / float(tail(0.5, 0.5, r0))) - null

    @property
    def compliance(self) -> float:
        """P(rate ≤ r0) in (0, 1): a Bayesian belief from recent calls, to share traffic by where nothing is proved.

        Calls fade with a half-life of 150 of the arm's own; the prior Beta(1, ln ½ / ln(1 − r0)) holds both sides of
        the limit equally likely. Not a proof: it may be wrong, and it moves both ways.
        """
        good = self._recent_calls - self._recent_bad
        return max(1e-6, float(betainc(1.0 + self._recent_bad, self._prior_good + good, self.limit_rate)))

    def state(self) -> list[float]:
        """Everything as numbers; `load` is its inverse."""
        return [float(self.calls), self.bad, self._recent_calls, self._recent_bad, *self._shiryaev]

    def load(self, state: Sequence[float]) -> None:
        """Take over a state."""
        if len(state) != 4 + len(_ALTERNATIVES):
            raise SnapshotMismatch("a rate test's state has another length")
        self.calls = int(state[0])
        self.bad, self._recent_calls, self._recent_bad = state[1:4]
        self._shiryaev = list(state[4:])
