"""Sums of every estimator's terms for one metric under one candidate, gathered part by part and added up at the end.

Everything an answer needs is a sum over rounds, by block for the bootstrap and by group for categories and tiers: a log
of any size fits, parts may be read by different processes, and `merge` adds them. Knows no log and prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf

import numpy as np
from numpy.typing import NDArray

from bandit.types import FloatArray
from evaluation.estimators import ESTIMATORS, TUNED
from evaluation.estimators.doubly_robust import doubly_robust
from evaluation.rounds import Rounds, Terms

__all__ = ["LOGGED", "MORE_ROBUST", "THRESHOLDS", "Support", "Tally"]

LOGGED = "logged"
MORE_ROBUST = "MRDR"
THRESHOLDS = (inf, *(float(2**k) for k in range(10, -1, -1)))
"""Of the tuned estimators, from least bias to most."""
MOST_BLOCKS = 1_000


@dataclass(slots=True)
class Support:
    """How well the log covers a candidate, by group, each of shape (n_groups,); ratio: π/p of the arm drawn.

    `rounds`, `observed` (those with a value); `weight`, `weight_square`: Σw and Σw² over the observed ones;
    `largest` w; `ratio`: Σ π/p over all rounds; `gap`: Σ of its probability on arms never to be seen;
    `expected_square`: Σ_t E[w_t²], which the logged probabilities tell exactly.
    """

    rounds: FloatArray
    observed: FloatArray
    weight: FloatArray
    weight_square: FloatArray
    largest: FloatArray
    ratio: FloatArray
    gap: FloatArray
    expected_square: FloatArray

    @property
    def effective_samples(self) -> FloatArray:
        """(Σw)² / Σw² (Kish, 1965): about how many rounds of the candidate's own the log is worth."""
        return np.where(self.weight_square > 0, self.weight**2 / np.maximum(self.weight_square, 1e-300), 0.0)

    @property
    def expected_effective_samples(self) -> FloatArray:
        """n² / Σ_t E[w_t²]: the same for an average draw of the log's arms.

        It does not depend on what was drawn. Where rare rounds weigh most and none happened to be drawn, the sample's
        own figure looks well, and to answer only where that looks well would pick the logs that mislead.
        """
        return np.where(self.expected_square > 0, self.rounds**2 / np.maximum(self.expected_square, 1e-300), 0.0)

    @property
    def mean_ratio(self) -> FloatArray:
        """Mean of π/p, which is 1 in expectation if propensities are right and nothing lacks support."""
        return self.ratio / np.maximum(self.rounds, 1.0)

    @property
    def gap_share(self) -> FloatArray:
        """Share of the candidate's choices that the log can say nothing about."""
        return self.gap / np.maximum(self.rounds, 1.0)


class Spread:
    """What the logged probabilities say of an estimate's variance, whichever arms happened to be drawn.

    Sums by arm: E[w²] given the context, which they tell exactly, and how the values seen of it spread around 0 or
    their prediction. On logs of a learner the sample's own variance is often far too small: rare rounds of large weight
    make most of it, and where none was drawn it does not show.
    """

    def __init__(self) -> None:
        self._arms = np.zeros((6, 0))  # Σ π²/reach; rounds seen, Σ r, Σ r²; Σ (r − q̂)², the same of the robust q̂
        self._direct = np.zeros((2, 2))  # Σ and Σ² of what is predicted of the policy; the same of the robust q̂
        self._rounds = 0

    def add(self, rounds: Rounds, robust: FloatArray | None) -> None:
        """Take in more rounds."""
        if not self._arms.size:
            self._arms = np.zeros((6, rounds.target.shape[1]))
        reach = rounds.behaviour * rounds.observed_share
        with np.errstate(divide="ignore", invalid="ignore"):
            self._arms[0] += np.where(reach > 0, rounds.target**2 / reach, 0.0).sum(axis=0)
        seen = rounds.observed
        arm, value, row = rounds.chosen[seen], rounds.value[seen], np.flatnonzero(seen)
        fitted = [rounds.predicted, rounds.predicted if robust is None else robust]
        squares = [(value - q[row, arm]) ** 2 for q in fitted]
        for at, weights in enumerate((np.ones(len(arm)), value, value * value, *squares), 1):
            self._arms[at] += np.bincount(arm, weights=weights, minlength=self._arms.shape[1])
        for at, q in enumerate(fitted):
            direct = np.einsum("nk,nk->n", rounds.target, q)
            self._direct[at] += (direct.sum(), np.einsum("n,n->", direct, direct))
        self._rounds += len(rounds)

    def merge(self, other: Spread) -> None:
        """Add another part."""
        if not self._arms.size:
            self._arms = np.zeros_like(other._arms)
        if other._arms.size:
            self._arms += other._arms
        self._direct += other._direct
        self._rounds += other._rounds

    def variance(self, name: str, value: float) -> float:
        """Of one round's term of an estimator (IPS, SNIPS, DR, SNDR, MRDR) whose estimate is `value`."""
        square, seen, total, squares, residual, robust = self._arms
        if name == "IPS":
            return max(0.0, self._pooled(square, squares, seen) - value * value)
        if name == "SNIPS":
            around = np.maximum(squares - 2.0 * value * total + seen * value * value, 0.0)
            return self._pooled(square, around, seen)
        at = int(name == MORE_ROBUST)
        mean, second = self._direct[at] / self._rounds
        return self._pooled(square, robust if at else residual, seen) + max(0.0, float(second - mean * mean))

    def _pooled(self, square: FloatArray, squares: FloatArray, seen: FloatArray) -> float:
        """Σ_a E[w²]·(mean square of a), one round of the mean over all arms added to each arm's own."""
        overall = float(squares.sum()) / max(float(seen.sum()), 1.0)
        return float(square @ ((squares + overall) / (seen + 1.0))) / self._rounds


class Tally:
    """One metric under one candidate over `n_rounds` rounds in their order, in at most 1,000 blocks of equal length.

    Group 0 is all rounds; the others are what `add` is told.
    """

    def __init__(self, n_rounds: int, n_groups: int = 1) -> None:
        self.n_rounds, self.n_groups = n_rounds, n_groups
        self.n_blocks = max(1, min(n_rounds, MOST_BLOCKS))
        names = [LOGGED, *ESTIMATORS, MORE_ROBUST]
        tuned = [(name, threshold) for name in TUNED for threshold in THRESHOLDS]
        self.blocks = {key: np.zeros((3, self.n_blocks)) for key in (*((n, inf) for n in names), *tuned)}
        """By estimator and threshold: sums of direct, residual and weight (0 where not self-normalised) by block."""
        self.counts = np.zeros((n_groups, self.n_blocks))
        self.grouped = {name: np.zeros((3, n_groups, self.n_blocks)) for name in (LOGGED, *ESTIMATORS)}
        self.squares = dict.fromkeys(self.blocks, 0.0)
        """Σ (direct + residual)² over rounds, for variances."""
        self.spread = Spread()
        self.support = Support(*(np.zeros(n_groups) for _ in range(8)))
        self.largest_possible = 0.0
        """The largest weight that any round could have had, whichever arm had been drawn."""

    def add(
        self, start: int, rounds: Rounds, groups: NDArray[np.intp] | None = None, robust: FloatArray | None = None
    ) -> None:
        """Take in the rounds from number `start` on.

        `groups` (n, g): further groups each one is in. `robust` (n, K): predictions fitted for the more robust DR.
        """
        n = len(rounds)
        block = (np.arange(start, start + n) * self.n_blocks) // self.n_rounds
        own = np.zeros((n, 1), dtype=np.intp)
        codes = own if groups is None else np.hstack((own, groups))
        cells = (codes * self.n_blocks + block[:, None]).ravel()
        self.counts += np.bincount(cells, minlength=self.counts.size).reshape(self.counts.shape)
        self._note_support(rounds, codes)
        self.spread.add(rounds, robust)
        starts = np.flatnonzero(np.diff(block, prepend=-1))
        for name, terms in self._plain_terms(rounds):
            self._add(name, inf, terms, block, starts)
            for row, values in enumerate((terms.direct, terms.residual, terms.weight)):
                if values is not None:
                    spread = np.repeat(values, codes.shape[1])
                    sums = np.bincount(cells, weights=spread, minlength=self.counts.size)
                    self.grouped[name][row] += sums.reshape(self.counts.shape)
        for name, tuned in TUNED.items():
            for threshold in THRESHOLDS:
                self._add(name, threshold, tuned(rounds, threshold), block, starts)
        if robust is not None:
            self._add(MORE_ROBUST, inf, doubly_robust(rounds.with_predicted(robust)), block, starts)

    def merge(self, other: Tally) -> None:
        """Add another part of the same rounds."""
        for key, sums in other.blocks.items():
            self.blocks[key] += sums
            self.squares[key] += other.squares[key]
        for name, grouped in other.grouped.items():
            self.grouped[name] += grouped
        self.counts += other.counts
        mine, theirs = self.support, other.support
        for field in Support.__slots__:
            fold = np.maximum if field == "largest" else np.add
            setattr(mine, field, fold(getattr(mine, field), getattr(theirs, field)))
        self.largest_possible = max(self.largest_possible, other.largest_possible)
        self.spread.merge(other.spread)

    def variance(self, name: str, threshold: float = inf) -> float:
        """Sample variance of an estimator's terms over rounds; for those that are not self-normalised."""
        n = float(self.counts[0].sum())
        mean = float(self.blocks[name, threshold][:2].sum()) / n
        return max(0.0, (self.squares[name, threshold] - n * mean * mean) / max(1.0, n - 1.0))

    @staticmethod
    def _plain_terms(rounds: Rounds) -> list[tuple[str, Terms]]:
        share = np.where(rounds.observed, rounds.observed_share[rounds.chosen], np.inf)
        share = 1.0 / share
        logged = Terms(np.zeros(len(rounds)), share * rounds.known_value, share)
        return [(LOGGED, logged), *((name, estimator(rounds)) for name, estimator in ESTIMATORS.items())]

    def _add(
        self, name: str, threshold: float, terms: Terms, block: NDArray[np.intp], starts: NDArray[np.intp]
    ) -> None:
        sums, at = self.blocks[name, threshold], block[starts]
        for row, values in enumerate((terms.direct, terms.residual, terms.weight)):
            if values is not None:
                sums[row, at] += np.add.reduceat(values, starts)
        total = terms.direct + terms.residual
        self.squares[name, threshold] += float(np.einsum("n,n->", total, total))

    def _note_support(self, rounds: Rounds, codes: NDArray[np.intp]) -> None:
        weight, ratio = rounds.weight, rounds.ratio
        reach = rounds.behaviour * rounds.observed_share
        gap = np.where(reach > 0, 0.0, rounds.target).sum(axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            square = np.where(reach > 0, rounds.target**2 / reach, 0.0).sum(axis=1)
        support = self.support
        for column in codes.T:
            for total, values in (
                (support.rounds, None),
                (support.observed, rounds.observed.astype(np.float64)),
                (support.weight, weight),
                (support.weight_square, weight * weight),
                (support.ratio, ratio),
                (support.gap, gap),
                (support.expected_square, square),
            ):
                np.add(total, np.bincount(column, weights=values, minlength=self.n_groups), out=total)
            np.maximum.at(support.largest, column, weight)
        possible = rounds.target[reach > 0] / reach[reach > 0]
        self.largest_possible = max(self.largest_possible, float(possible.max(initial=0.0)))
