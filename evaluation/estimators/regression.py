"""The model behind direct and doubly robust estimates: one ridge regression per arm, cross-fitted.

Kept as sums, so it is fitted over a log of any size, part by part. Knows nothing of policies but the weights it gets.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bandit.types import BoolArray, FloatArray
from evaluation.rounds import Rounds

__all__ = ["ArmRegression", "Design", "mrdr_weight"]


class ArmRegression:
    """Ridge regressions of a metric on a context, by arm, for each of F folds fitted on the other folds' rows.

    A round is predicted by what was fitted without its fold, so a doubly robust estimate stays unbiased (cross-fitting,
    Chernozhukov et al., 2018). Slopes are held to 0 with precision `alpha`, the intercept is free. An arm without a row
    in the other folds is predicted by the mean of all arms there. `add` may be called part by part and in any order,
    `merge` adds what another process has seen.
    """

    def __init__(self, n_arms: int, dimension: int, *, folds: int = 3, alpha: float = 1.0) -> None:
        self.folds, self.alpha = folds, alpha
        self._gram = np.zeros((folds, n_arms, dimension + 1, dimension + 1))
        self._moment = np.zeros((folds, n_arms, dimension + 1))
        self._plain = np.zeros((folds, 2))  # number of observed values and their sum, unweighted
        self._theta: FloatArray | None = None

    def add(self, design: Design, value: FloatArray) -> None:
        """Take in rows: a design of this shape, and the metric (n,) of its known rows, any value for the others."""
        self._theta = None
        sums = design.sums(value)
        self._gram += design.gram
        self._moment += sums[..., :-1]
        self._plain[:, 0] += design.counts
        self._plain[:, 1] += sums[..., -1].sum(axis=1)

    def merge(self, other: ArmRegression) -> None:
        """Add what another one of the same shape has taken in."""
        self._theta = None
        self._gram += other._gram
        self._moment += other._moment
        self._plain += other._plain

    def predict(
        self, x: FloatArray, fold: NDArray[np.intp], *, low: float = -np.inf, high: float = np.inf
    ) -> FloatArray:
        """Predictions for every arm, shape (n, K), held between `low` and `high`; folds (n,) say what to leave out."""
        theta, design = self._fitted(), with_intercept(x)
        predicted = np.empty((len(x), theta.shape[1]))
        for f in range(self.folds):
            rows = fold == f
            predicted[rows] = design[rows] @ theta[f].T
        return np.clip(predicted, low, high, out=predicted)

    def _fitted(self) -> FloatArray:
        """Coefficients (folds, K, d + 1), each fold's from the sums of the others."""
        if self._theta is None:
            folds, n_arms, width = self._moment.shape
            theta = np.zeros((folds, n_arms, width))
            penalty = np.full(width, self.alpha)
            penalty[0] = 0.0
            for f in range(folds):
                count, total = self._plain.sum(axis=0) - self._plain[f]
                theta[f, :, 0] = total / count if count else 0.0
                gram = self._gram.sum(axis=0) - self._gram[f]
                moment = self._moment.sum(axis=0) - self._moment[f]
                for arm in np.flatnonzero(gram[:, 0, 0] > 1e-12 * max(1.0, float(gram[:, 0, 0].max()))):
                    theta[f, arm] = np.linalg.solve(gram[arm] + np.diag(penalty), moment[arm])
            self._theta = theta
        return self._theta


class Design:
    """Contexts of a part of a log, sorted by fold and arm, and their Gram matrices; serves every metric known there.

    `known` (n,): the rows that count. `weight` (n,) ≥ 0: of each row in the regression; None: 1.
    """

    def __init__(
        self,
        x: FloatArray,
        chosen: NDArray[np.intp],
        fold: NDArray[np.intp],
        shape: tuple[int, int],
        *,
        known: BoolArray,
        weight: FloatArray | None = None,
    ) -> None:
        """`x` (n, d), arms `chosen` (n,), `fold` (n,); `shape`: how many folds and arms there are."""
        folds, n_arms = shape
        cell = fold * n_arms + chosen
        rows = np.flatnonzero(known)
        self.counts = np.bincount(fold[rows], minlength=folds)
        self._shape, self._rows = shape, rows[np.argsort(cell[rows], kind="stable")]
        self._starts = np.searchsorted(cell[self._rows], np.arange(folds * n_arms + 1))
        plain = with_intercept(x[self._rows])
        self._weighted = plain if weight is None else plain * weight[self._rows, None]
        self.gram = np.zeros((folds, n_arms, plain.shape[1], plain.shape[1]))
        for at, (start, stop) in enumerate(pairwise(self._starts.tolist())):
            if stop > start:
                self.gram[divmod(at, n_arms)] = self._weighted[start:stop].T @ plain[start:stop]

    def sums(self, value: FloatArray) -> FloatArray:
        """By fold and arm: Σ weight·x·value, and last the unweighted Σ value; shape (folds, n_arms, d + 2)."""
        known = value[self._rows]
        columns = np.hstack((self._weighted * known[:, None], known[:, None]))
        sums = np.zeros((len(self._starts) - 1, columns.shape[1]))
        filled = np.flatnonzero(np.diff(self._starts))
        if filled.size:
            sums[filled] = np.add.reduceat(columns, self._starts[filled], axis=0)
        return sums.reshape(*self._shape, -1)


def mrdr_weight(rounds: Rounds) -> FloatArray:
    """Weights (n,) under which a regression minimises the variance of DR: π² (1 − p) / p² of the arm drawn.

    The diagonal of the quadratic form of Farajtabar, Chow & Ghavamzadeh (2018, section 4); for a deterministic policy
    it is theirs exactly. What remains of the variance is the predictions' covariance between arms, which one drawn arm
    a round cannot show.
    """
    p = rounds.propensity
    return np.asarray(rounds.ratio**2 * (1.0 - p))


def with_intercept(x: FloatArray) -> FloatArray:
    """A design matrix (n, d + 1): ones, then the context."""
    return np.hstack((np.ones((len(x), 1)), x))
