"""Intervals around off-policy estimates: bootstrap, empirical Bernstein, and a sequence that is valid at any time.

Pure arithmetic on sums and arrays. Each says what it assumes; none knows where its numbers came from.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, sqrt
from typing import Final

import numpy as np
from scipy.special import gammainc, gammaln

from bandit.types import FloatArray
from evaluation.rounds import Rounds

__all__ = ["ASSUMES", "AnytimeSequence", "Interval", "bootstrap_draws", "empirical_bernstein", "mixture_boundary"]

ASSUMES: Final = {
    "bootstrap": "many blocks of rounds, independent of each other; asymptotic, widened to what the propensities imply",
    "bernstein": "independent rounds and a fixed policy; exact for any number of rounds",
    "anytime": "right propensities, nothing else: rounds may depend on earlier ones, and one may look at any time",
}


@dataclass(frozen=True, slots=True)
class Interval:
    """`low` to `high`, made by `kind` (a key of ASSUMES)."""

    kind: str
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


def bootstrap_draws(n_blocks: int, replicates: int, rng: np.random.Generator) -> FloatArray:
    """How often each of `n_blocks` blocks of rounds is in each replicate, shape (replicates, n_blocks), float.

    One matrix serves all estimators, metrics and policies of a log, so their differences can be bootstrapped, too.
    """
    return rng.multinomial(n_blocks, np.full(n_blocks, 1.0 / n_blocks), size=replicates).astype(np.float64)


def empirical_bernstein(mean: float, variance: float, n: int, span: float, alpha: float = 0.05) -> Interval:
    """Two-sided interval for the mean of n independent values within a range of length `span`.

    mean ± [√(2 V ln(4/α)/n) + 7·span·ln(4/α)/(3(n − 1))], V the sample variance (Maurer & Pontil, 2009, theorem 4, both
    sides at α/2). Holds for every n ≥ 2; wide while span/n is large against the spread, as with large weights.
    """
    if n < 2:
        return Interval("bernstein", float("-inf"), float("inf"))
    nats = log(4.0 / alpha)
    half = sqrt(2.0 * max(variance, 0.0) * nats / n) + 7.0 * span * nats / (3.0 * (n - 1))
    return Interval("bernstein", mean - half, mean + half)


def mixture_boundary(variance: FloatArray, alpha: float, rho: float) -> FloatArray:
    """The u with P(∃t: S_t ≥ u(V_t)) ≤ α, for sums S whose exp(λS − (−ln(1 − λ) − λ)V) is a supermartingale.

    λ in [0, 1); `variance` V ≥ 0 of any shape. Mixes λ over the density ∝ (1 − λ)^(ρ−1) e^(−ρ(1−λ)), which gives

        m(s, v) = e^(s+v) · Γ(v+ρ) P(v+ρ, s+v+ρ) / (s+v+ρ)^(v+ρ) · ρ^ρ / (Γ(ρ) P(ρ, ρ)),

    P the regularised lower incomplete gamma function (the gamma-exponential mixture of Howard, Ramdas, McAuliffe &
    Sekhon, 2021, proposition 9 with c = 1); u(v) solves m = 1/α, found by bisection. Tightest about V = 10·ρ.
    """
    v = np.asarray(variance, dtype=np.float64)
    a = v + rho
    at_rest = rho * np.log(rho) - gammaln(rho) - np.log(gammainc(rho, rho))
    constant = at_rest + v + gammaln(a) + log(alpha)

    def excess(s: FloatArray) -> FloatArray:
        return np.asarray(constant + s + np.log(gammainc(a, s + a)) - a * np.log(s + a))

    low, high = np.zeros_like(v), np.ones_like(v)
    while (short := excess(high) < 0).any():
        high[short] *= 2.0
    for _ in range(60):
        middle = 0.5 * (low + high)
        above = excess(middle) >= 0
        high, low = np.where(above, middle, high), np.where(above, low, middle)
    return high


class AnytimeSequence:
    """A confidence sequence for a policy's mean metric in [0, 1], from rounds in the order in which they were logged.

    For each round, with w the importance weight and q any prediction made before it (0: plain IPS), the lower side sums
    φ = w(r − q′) + Σ_a π(a) q′(a), where q′ = min(q, k/w) by arm keeps φ ≥ −k: the truncated doubly robust terms of
    Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro (2022). With ξ = φ/(k + 1) and ξ̂ the mean of the ξ before (at
    most 1/(k + 1)), exp(λΣ(ξ − E ξ) − (−ln(1 − λ) − λ)Σ(ξ − ξ̂)²) is a supermartingale (Fan, Grama & Liu, 2015), so
    `mixture_boundary` bounds the running mean of E φ from below at all times together. The upper side is the lower one
    of 1 − r. Propensities may depend on everything logged before: the policy that made the log may have been learning,
    and so may the candidate. It bounds the mean, over the rounds so far, of what the candidate was expected to get.
    """

    def __init__(self, *, alpha: float = 0.05, truncation: float = 4.0, rho: float = 3.0) -> None:
        self._alpha, self._k, self._rho = alpha, truncation, rho
        self.rounds = 0
        self._sum = np.zeros(2)  # of ξ: lower side, upper side
        self._variance = np.zeros(2)

    def add(self, rounds: Rounds) -> tuple[FloatArray, FloatArray]:
        """Take in the next rounds, metric in [0, 1]; returns Σξ and V after each, both (2, n), for `bounds_at`."""
        with np.errstate(divide="ignore", invalid="ignore"):
            most = self._k * rounds.behaviour * rounds.observed_share / rounds.target
        most = np.where(rounds.target > 0, most, np.inf)
        xi = np.stack(
            [
                self._terms(rounds, rounds.known_value, rounds.predicted, most),
                self._terms(rounds, 1.0 - rounds.known_value, 1.0 - rounds.predicted, most),
            ]
        )
        n = np.arange(self.rounds, self.rounds + len(rounds))
        sums = self._sum[:, None] + xi.cumsum(axis=1)
        expected = np.minimum((sums - xi) / np.maximum(n, 1), 1.0 / (self._k + 1.0))
        variances = self._variance[:, None] + ((xi - expected) ** 2).cumsum(axis=1)
        self.rounds += len(rounds)
        self._sum, self._variance = sums[:, -1].copy(), variances[:, -1].copy()
        return sums, variances

    def bounds_at(self, sums: FloatArray, variances: FloatArray, n: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(low, high), each of the shape of `n`, after `n` rounds with these sums (2, …); within [0, 1]."""
        u = mixture_boundary(variances, self._alpha / 2.0, self._rho)
        lower = np.clip((self._k + 1.0) * (sums - u) / n, 0.0, 1.0)
        return lower[0], 1.0 - lower[1]

    def interval(self) -> Interval:
        """The interval after all rounds so far."""
        if not self.rounds:
            return Interval("anytime", 0.0, 1.0)
        low, high = self.bounds_at(self._sum, self._variance, np.asarray(float(self.rounds)))
        return Interval("anytime", float(low), float(high))

    def _terms(self, rounds: Rounds, value: FloatArray, predicted: FloatArray, most: FloatArray) -> FloatArray:
        q = np.minimum(np.clip(np.nan_to_num(predicted), 0.0, 1.0), most)
        direct = np.einsum("nk,nk->n", rounds.target, q)
        residual = np.where(rounds.observed, value - q[np.arange(len(rounds)), rounds.chosen], 0.0)
        return np.asarray((direct + rounds.weight * residual) / (self._k + 1.0))
