"""What a policy is: a pure map from beliefs about utilities to action probabilities.

Knows nothing of contexts, heads or limits, keeps no state and draws nothing: whoever calls it draws the arm from the
probabilities it returns, so the logged propensity is exact for every policy.
"""

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np

from bandit._mixing import floored
from bandit.scorer import Utilities
from bandit.types import BoolArray, FloatArray

__all__ = ["Policy", "one_hot", "uniform_over", "with_floor"]


class Policy(Protocol):
    """`version` names the law and its parameters; `slopes` says whether heads may use more than the intercept."""

    @property
    def version(self) -> str:
        """The law and its parameters, as logged."""
        ...

    @property
    def slopes(self) -> Literal["auto", "never"]:
        """Whether the heads may use the context."""
        ...

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """Probabilities of shape (n_arms,), summing to 1.

        `compliance` in [0, 1] is the belief that an arm keeps its limits; 0 means filtered, and gets probability 0 (at
        least one arm is above 0). `step` is the pool's count of requests so far.
        """
        ...


def one_hot(index: int, n_arms: int) -> FloatArray:
    """All probability on one arm."""
    p = np.zeros(n_arms)
    p[index] = 1.0
    return p


def uniform_over(feasible: BoolArray) -> FloatArray:
    """Equal probability for every feasible arm."""
    return np.asarray(feasible / feasible.sum())


def with_floor(p: FloatArray, feasible: BoolArray, floor: float, weights: FloatArray | None = None) -> FloatArray:
    """Mix in exploration: every feasible arm gets at least `floor`/(number of feasible arms), times its weight.

    `weights` in [0, 1], shape (n_arms,); None: all 1. What weights below 1 leave over stays with `p`.
    """
    if floor == 0.0:
        return p
    return floored(p, feasible, floor, weights)
