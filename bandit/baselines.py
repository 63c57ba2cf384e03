"""The policies to compare with, behind the same Protocol: each with its exact probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Literal

import numpy as np

from bandit.errors import InvalidInput
from bandit.policy import one_hot, uniform_over, with_floor
from bandit.scorer import Utilities
from bandit.types import FloatArray

__all__ = ["UCB1", "EpsilonGreedy", "Fixed", "RoundRobin", "Uniform"]


class _ContextFree:
    """Shared by the baselines: none of them looks at the context."""

    __slots__ = ()

    @property
    def slopes(self) -> Literal["auto", "never"]:
        """See `Policy.slopes`."""
        return "never"


@dataclass(frozen=True, slots=True)
class Uniform(_ContextFree):
    """Every feasible arm with equal probability."""

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return "uniform-1"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`."""
        return uniform_over(compliance > 0)


@dataclass(frozen=True, slots=True)
class Fixed(_ContextFree):
    """Always arm `index`; the feasible arm of the highest mean utility while that one is not feasible."""

    index: int

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return f"fixed-1/arm={self.index}"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`."""
        index = self.index if compliance[self.index] > 0 else _greedy(utilities.mean, compliance)
        return one_hot(index, compliance.shape[0])


@dataclass(frozen=True, slots=True)
class RoundRobin(_ContextFree):
    """The feasible arms in turn, by the pool's request count. Deterministic: propensity 1."""

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return "round_robin-1"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`."""
        candidates = np.flatnonzero(compliance)
        return one_hot(int(candidates[step % candidates.size]), compliance.shape[0])


@dataclass(frozen=True, slots=True)
class EpsilonGreedy(_ContextFree):
    """The highest mean utility with probability 1 − ε, else uniform; `epsilon` in [0, 1]."""

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.epsilon <= 1:
            raise InvalidInput("policy.epsilon", "must be between 0 and 1")

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return f"epsilon_greedy-1/epsilon={self.epsilon:g}"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`."""
        greedy = one_hot(_greedy(utilities.mean, compliance), compliance.shape[0])
        return with_floor(greedy, compliance > 0, self.epsilon)


@dataclass(frozen=True, slots=True)
class UCB1(_ContextFree):
    """The highest `mean + √(2 ln t / n)` (Auer, Cesa-Bianchi & Fischer, 2002), n discounted counts of feedback.

    Deterministic: propensity 1. Arms without feedback come first. With delayed feedback it repeats itself until some
    arrives; it is here as a yardstick.
    """

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return "ucb1-1"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`."""
        with np.errstate(divide="ignore", over="ignore"):
            bonus = np.sqrt(2.0 * log(max(2, step)) / utilities.count)
        return one_hot(_greedy(utilities.mean + bonus, compliance), compliance.shape[0])


def _greedy(values: FloatArray, compliance: FloatArray) -> int:
    return int(np.argmax(np.where(compliance > 0, values, -np.inf)))
