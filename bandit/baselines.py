"""The policies to compare with and to choose from, behind the same Protocol: each with its exact probabilities.

Knows beliefs about utilities and who is feasible, nothing of how they were learned. Only Thompson sampling weighs how
likely an arm is to keep its limits: to all others an arm of any compliance above 0 is as feasible as the next, and it
is the filters that cap and remove arms. An exploration floor is spread as `Utilities.floor_weights` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, log
from typing import ClassVar, Literal

import numpy as np

from bandit.errors import InvalidInput
from bandit.policy import Policy, one_hot, uniform_over, with_floor
from bandit.scorer import Utilities
from bandit.thompson import Thompson
from bandit.types import BoolArray, FloatArray

__all__ = [
    "UCB1",
    "BestFeasible",
    "EpsilonGreedy",
    "Fixed",
    "LinUCB",
    "LogisticThompson",
    "RoundRobin",
    "SquareCB",
    "Uniform",
    "Weighted",
    "for_other_arms",
]


class _ContextFree:
    """Shared by the policies that do not look at the context."""

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


@dataclass(frozen=True, slots=True)
class Weighted(_ContextFree):
    """Fixed proportions: arm a with `weights[a]` over the sum of the feasible arms' weights.

    `weights`, one for each arm in the pool's order, are at least 0 and only relative. Where all feasible arms weigh 0,
    they share equally. `InvalidInput` for another number of arms: see `for_other_arms`.
    """

    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.weights or not all(isfinite(weight) and weight >= 0 for weight in self.weights):
            raise InvalidInput("policy.weights", "must be finite numbers of at least 0, one for each arm")

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return f"weighted-1/weights={','.join(f'{weight:g}' for weight in self.weights)}"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`."""
        if compliance.shape[0] != len(self.weights):
            raise InvalidInput("policy.weights", f"are {len(self.weights)}, for {compliance.shape[0]} arms")
        feasible = compliance > 0
        weights = np.where(feasible, self.weights, 0.0)
        largest = weights.max()
        if largest == 0.0:
            return uniform_over(feasible)
        weights /= largest  # before the sum, which must neither overflow nor vanish
        return np.asarray(weights / weights.sum())


class _Contextual:
    """Shared by the policies that use the context as far as there is evidence for it."""

    __slots__ = ()

    @property
    def slopes(self) -> Literal["auto", "never"]:
        """See `Policy.slopes`."""
        return "auto"


@dataclass(frozen=True, slots=True)
class BestFeasible(_Contextual):
    """The feasible arm of the highest mean utility; equal ones share equally.

    `exploration_floor` ε in [0, 1) mixes in the uniform over feasible arms. With 0 it is deterministic, and never
    finds out about an arm that looked worse at first.
    """

    exploration_floor: float = 0.01

    def __post_init__(self) -> None:
        _check_floor(self.exploration_floor)

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return f"best_feasible-1/floor={self.exploration_floor:g}"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`."""
        feasible = compliance > 0
        best = uniform_over(_largest(utilities.mean, feasible))
        return with_floor(best, feasible, self.exploration_floor, utilities.floor_weights)


@dataclass(frozen=True, slots=True)
class LinUCB(_Contextual):
    """The highest `mean + alpha·sd` (Li, Chu, Langford & Schapire, 2010, algorithm 1); equal ones share equally.

    `alpha` ≥ 0; `exploration_floor` ε in [0, 1) mixes in the uniform, without which it is deterministic (propensity 1).
    There sd is √(xᵀA⁻¹x), in units of the noise; here it is the posterior's own, noise included and cost and latency
    with it, so that alpha counts standard deviations of the expected utility. Like any index it repeats itself until
    feedback comes, so delay costs it more than it costs a sampler. With alpha 1 it stayed with the wrong one of two
    specialists in two of ten seeds, with 2 in none (tests/statistical/test_policies.py).
    """

    alpha: float = 1.0
    exploration_floor: float = 0.01

    def __post_init__(self) -> None:
        if not 0 <= self.alpha < np.inf:
            raise InvalidInput("policy.alpha", "must be a finite number of at least 0")
        _check_floor(self.exploration_floor)

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return f"linucb-1/alpha={self.alpha:g},floor={self.exploration_floor:g}"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`."""
        feasible = compliance > 0
        best = uniform_over(_largest(utilities.mean + self.alpha * utilities.sd, feasible))
        return with_floor(best, feasible, self.exploration_floor, utilities.floor_weights)


@dataclass(frozen=True, slots=True)
class SquareCB(_Contextual):
    """Inverse gap weighting (Abe & Long, 1999; SquareCB: Foster & Rakhlin, 2020, algorithm 1).

    With K feasible arms and mean utilities û, an arm that is not the best gets `p_a = 1/(K + γ(û_max − û_a))`, and the
    best gets what is left (equal ones share it). `γ = gamma_scale · step^gamma_exponent`, so it starts at the uniform.
    `gamma_scale` > 0, `gamma_exponent` in [0, 2], `exploration_floor` ε in [0, 1) mixes in the uniform.

    Its regret bound sets γ by the regression's own regret, with exponent ½, and is for immediate feedback and
    stationary rewards. Here γ grows with the pool's requests, whether or not anything was learned from them.
    """

    gamma_scale: float = 10.0
    gamma_exponent: float = 0.5
    exploration_floor: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.gamma_scale < np.inf:
            raise InvalidInput("policy.gamma_scale", "must be a finite number above 0")
        if not 0 <= self.gamma_exponent <= 2:
            raise InvalidInput("policy.gamma_exponent", "must be between 0 and 2")
        _check_floor(self.exploration_floor)

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        gamma = f"{self.gamma_scale:g}t^{self.gamma_exponent:g}"
        return f"squarecb-1/gamma={gamma},floor={self.exploration_floor:g}"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`."""
        feasible = compliance > 0
        best = _largest(utilities.mean, feasible)
        gamma = self.gamma_scale * float(step) ** self.gamma_exponent
        gap = utilities.mean[best][0] - utilities.mean[feasible]
        p = np.zeros(compliance.shape[0])
        p[feasible] = 1.0 / (feasible.sum() + gamma * gap)
        p[best] = (1.0 - p[~best].sum()) / best.sum()
        return with_floor(p, feasible, self.exploration_floor, utilities.floor_weights)


class LogisticThompson(Thompson):
    """Thompson sampling on a Bayesian logistic regression of quality (Chapelle & Li, 2011), for quality that is 0 or 1.

    `quality_likelihood` asks the pool for `bandit.logistic_heads`; law and parameters are those of `Thompson`. The
    quality belief enters as a normal of the logistic head's mean and variance, which is off where it is wide and near
    0 or 1.
    """

    __slots__ = ()
    quality_likelihood: ClassVar[str] = "logistic"

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return f"logistic_{super().version}"


def for_other_arms(policy: Policy, rows: Sequence[int | None]) -> Policy:
    """The same law where arm i was arm `rows[i]`, or is new (None): for a pool that an arm joins or leaves.

    Only `Weighted` and `Fixed` know their arms; any other policy is returned as it is. A newcomer weighs 0. Raises
    `InvalidInput` when the arm that `Fixed` takes, or every arm that weighs anything, has left.
    """
    if isinstance(policy, Weighted):
        kept = tuple(0.0 if row is None else policy.weights[row] for row in rows)
        if any(policy.weights) and not any(kept):
            raise InvalidInput("policy.weights", "are those of arms that leave; give the pool another policy first")
        return Weighted(kept)
    if isinstance(policy, Fixed):
        if policy.index not in rows:
            raise InvalidInput("policy.model", "is the arm that leaves; give the pool another policy first")
        return Fixed(rows.index(policy.index))
    return policy


def _check_floor(floor: float) -> None:
    if not 0 <= floor < 1:
        raise InvalidInput("policy.exploration_floor", "must be at least 0 and below 1")


def _largest(values: FloatArray, feasible: BoolArray) -> BoolArray:
    """Which feasible arms have the largest value; exactly equal ones are all marked."""
    return np.asarray(feasible & (values == values[feasible].max()))


def _greedy(values: FloatArray, compliance: FloatArray) -> int:
    return int(np.argmax(np.where(compliance > 0, values, -np.inf)))
