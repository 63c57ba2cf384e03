"""The arrays every estimator works on: logged rounds under one candidate policy, and what an estimator makes of them.

Plain values. Knows no log, no file and no formula.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from bandit.errors import InvalidInput
from bandit.types import BoolArray, FloatArray

__all__ = ["Rounds", "Terms"]

_SUM_TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True, eq=False)
class Rounds:
    """n logged rounds, K arms: one metric under one candidate policy; a whole log, or a chunk of one.

    `chosen` (n,) the arm drawn; `behaviour` (n, K) the logged probabilities it was drawn from; `target` (n, K) the
    candidate's; rows of both sum to 1. `value` (n,) the metric, NaN where it was not observed. `predicted` (n, K) a
    model's prediction of the metric, made without the round itself (cross-fitted, or logged beforehand).
    `observed_share` (K,) in [0, 1]: by arm, the probability that the value of a round in which it was drawn is known; 0
    where none ever was.
    """

    chosen: NDArray[np.intp]
    behaviour: FloatArray
    value: FloatArray
    target: FloatArray
    predicted: FloatArray
    observed_share: FloatArray

    @classmethod
    def of(
        cls,
        chosen: NDArray[np.intp],
        behaviour: FloatArray,
        value: FloatArray,
        target: FloatArray,
        *,
        predicted: FloatArray | None = None,
        observed_share: FloatArray | None = None,
    ) -> Rounds:
        """Checked rounds. Without `predicted` it is 0, without `observed_share` 1 (every value is observed or lost).

        Raises InvalidInput that names the first row and column that cannot be: shapes, probabilities outside [0, 1],
        rows that do not sum to 1 (within 1e-6), an arm drawn with probability 0, nothing at all.
        """
        n, k = behaviour.shape
        if n == 0:
            raise InvalidInput("rounds", "there is none")
        for name, array, shape in (
            ("chosen", chosen, (n,)),
            ("value", value, (n,)),
            ("target", target, (n, k)),
            *((("predicted", predicted, (n, k)),) if predicted is not None else ()),
            *((("observed_share", observed_share, (k,)),) if observed_share is not None else ()),
        ):
            if array.shape != shape:
                raise InvalidInput(name, f"has shape {array.shape}, not {shape}")
        for name, p in (("behaviour", behaviour), ("target", target)):
            check_distribution(name, p)
        drawn = behaviour[np.arange(n), chosen]
        if not (drawn > 0).all():
            row = int(np.flatnonzero(~(drawn > 0))[0])
            raise InvalidInput("behaviour", f"row {row}, arm {int(chosen[row])}: was drawn with probability 0")
        return cls(
            chosen,
            behaviour,
            value,
            target,
            np.zeros((n, k)) if predicted is None else predicted,
            np.ones(k) if observed_share is None else observed_share,
        )

    def __len__(self) -> int:
        return len(self.chosen)

    def with_predicted(self, predicted: FloatArray) -> Rounds:
        """The same rounds with other predictions, shape (n, K)."""
        return replace(self, predicted=predicted)

    @property
    def observed(self) -> BoolArray:
        """Where the metric is known, shape (n,)."""
        return ~np.isnan(self.value)

    @property
    def propensity(self) -> FloatArray:
        """The logged probability of the arm drawn, shape (n,)."""
        return np.asarray(self.behaviour[np.arange(len(self)), self.chosen])

    @property
    def ratio(self) -> FloatArray:
        """π(chosen) / propensity, shape (n,), whether the value is observed or not."""
        return np.asarray(self.target[np.arange(len(self)), self.chosen] / self.propensity)

    @property
    def weight(self) -> FloatArray:
        """Importance weights π(chosen) / (propensity · observed share), 0 where the value is not observed, (n,)."""
        share = np.where(self.observed, self.observed_share[self.chosen], 1.0)
        return np.where(self.observed, self.ratio / share, 0.0)

    @property
    def known_value(self) -> FloatArray:
        """The metric with 0 where it is not observed (its weight is 0 there, too), shape (n,)."""
        return np.where(self.observed, self.value, 0.0)

    @property
    def predicted_chosen(self) -> FloatArray:
        """The prediction for the arm drawn, shape (n,)."""
        return np.asarray(self.predicted[np.arange(len(self)), self.chosen])

    @property
    def predicted_value(self) -> FloatArray:
        """Σ_a π(a) q̂(a): what the prediction expects of the candidate, shape (n,)."""
        return np.asarray(np.einsum("nk,nk->n", self.target, self.predicted))


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What an estimator makes of n rounds, each of shape (n,).

    The estimate is mean(direct) + Σ residual / Σ weight for a self-normalised one, and mean(direct + residual) where
    `weight` is None. Sums over the parts of a log therefore give the same estimate as the whole.
    """

    direct: FloatArray
    residual: FloatArray
    weight: FloatArray | None = None

    @property
    def estimate(self) -> float:
        """The estimate from these rounds alone; NaN for a self-normalised one without any weight."""
        if self.weight is None:
            return float((self.direct + self.residual).mean())
        total = float(self.weight.sum())
        return float(self.direct.mean()) + float(self.residual.sum()) / total if total > 0 else float("nan")


def check_distribution(name: str, p: FloatArray) -> None:
    """Raise InvalidInput unless every row of `p` (n, K) is a probability distribution, naming the row and column."""
    wrong = ~((p >= 0) & (p <= 1 + _SUM_TOLERANCE))
    if wrong.any():
        row, arm = (int(i[0]) for i in np.nonzero(wrong))
        raise InvalidInput(name, f"row {row}, column {arm}: {p[row, arm]:g} is no probability")
    off = np.abs(p.sum(axis=1) - 1.0) > _SUM_TOLERANCE
    if off.any():
        row = int(np.flatnonzero(off)[0])
        raise InvalidInput(name, f"row {row}: probabilities sum to {p[row].sum():.9g}, not 1")
