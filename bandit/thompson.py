"""Thompson sampling with exact propensities: the policy this library exists for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bandit.errors import InvalidInput
from bandit.policy import with_floor
from bandit.propensity import best_arm_probabilities
from bandit.scorer import Utilities
from bandit.types import FloatArray

__all__ = ["Thompson"]


@dataclass(frozen=True, slots=True)
class Thompson:
    """Each feasible arm with the probability that its sampled utility is the largest (Thompson, 1933).

    Sampling one utility per arm and taking the largest is the same law as drawing from these probabilities; computing
    them first makes the propensity known exactly. `exploration_floor` ε in [0, 1) mixes in the uniform, which bounds
    importance weights by (number of feasible arms)/ε. `contextual=False` uses intercepts only.

    Regret guarantees (Agrawal & Goyal, 2013) are for immediate feedback and a true linear model; with delay,
    forgetting and hard limits this is a heuristic that measurements have to justify.
    """

    exploration_floor: float = 0.01
    contextual: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.exploration_floor < 1:
            raise InvalidInput("policy.exploration_floor", "must be at least 0 and below 1")

    @property
    def version(self) -> str:
        """See `Policy.version`."""
        return f"{'thompson' if self.contextual else 'thompson_context_free'}-1/floor={self.exploration_floor:g}"

    @property
    def slopes(self) -> Literal["auto", "never"]:
        """See `Policy.slopes`."""
        return "auto" if self.contextual else "never"

    def probabilities(self, utilities: Utilities, compliance: FloatArray, step: int) -> FloatArray:
        """See `Policy.probabilities`; whether an arm complies is sampled like its utility."""
        p = best_arm_probabilities(utilities.mean, utilities.sd, compliance)
        return with_floor(p, compliance > 0, self.exploration_floor)
