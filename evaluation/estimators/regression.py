"""The model behind direct and doubly robust estimates: one ridge regression per arm, cross-fitted.

Kept as sums, so it is fitted over a log of any size, part by part. Knows nothing of policies but the weights it gets.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandit.types import FloatArray
from evaluation.rounds import Rounds

__all__ = ["ArmRegression", "mrdr_weight"]


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

    def add(
        self,
        x: FloatArray,
        chosen: NDArray[np.intp],
        value: FloatArray,
        fold: NDArray[np.intp],
        weight: FloatArray | None = None,
    ) -> None:
        """Take in contexts (n, d), arms (n,), the metric (n,), NaN where unknown, folds (n,) and weights (n,) ≥ 0."""
        known = ~np.isnan(value)
        self._theta = None
        design = with_intercept(x)
        for f in range(self.folds):
            in_fold = known & (fold == f)
            self._plain[f] += (np.count_nonzero(in_fold), value[in_fold].sum())
            for arm in range(self._gram.shape[1]):
                rows = np.flatnonzero(in_fold & (chosen == arm))
                if weight is not None:
                    rows = rows[weight[rows] > 0]
                if rows.size:
                    picked = design[rows]
                    weighted = picked if weight is None else picked * weight[rows, None]
                    self._gram[f, arm] += weighted.T @ picked
                    self._moment[f, arm] += weighted.T @ value[rows]

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
