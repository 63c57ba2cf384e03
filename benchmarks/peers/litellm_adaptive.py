"""LiteLLM's adaptive router, written from a description of what it does; none of its code is used.

For every request type and arm a Beta posterior of quality; a call goes to the largest weighted sum of a sampled
quality and the arm's cheapness; a posterior that has had 200 samples learns no more. It knows no budget.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from bandit.types import FloatArray
from benchmarks.peers import Peer, Task, warm_rows

__all__ = ["MAX_SAMPLES", "LiteLLMAdaptive", "create"]

MAX_SAMPLES: Final = 200
QUALITY_WEIGHT: Final = 0.7
COST_WEIGHT: Final = 0.3


class LiteLLMAdaptive:
    """Score of an arm: 0.7·q + 0.3·(1 − c), q drawn from its Beta(1 + Σ quality, 1 + Σ (1 − quality)).

    c is the arm's mean cost, scaled so that the cheapest arm has 0 and the dearest 1. Weights, prior and scaling
    are our choices. `mean_cost_usd`: shape (n_arms,), finite.
    """

    name = "litellm_adaptive"

    def __init__(self, mean_cost_usd: FloatArray, seed: int) -> None:
        self._n_arms = len(mean_cost_usd)
        spread = float(np.ptp(mean_cost_usd))
        normalised = (mean_cost_usd - mean_cost_usd.min()) / spread if spread > 0 else np.zeros(self._n_arms)
        self._cheapness = COST_WEIGHT * (1.0 - normalised)
        self._rng = np.random.default_rng(seed)
        self._posteriors: dict[str, FloatArray] = {}
        """By request type: shape (2, n_arms), the Beta's two parameters."""

    def choose(self, x: FloatArray, category: str = "") -> int:
        """See `Peer.choose`."""
        del x
        alpha, beta = self._posterior(category)
        return int(np.argmax(QUALITY_WEIGHT * self._rng.beta(alpha, beta) + self._cheapness))

    def learn(self, x: FloatArray, arm: int, quality: float, cost_usd: float, category: str = "") -> None:
        """See `Peer.learn`."""
        del x, cost_usd
        posterior = self._posterior(category)
        # The prior weighs 2 and each sample 1, so the sum of the parameters counts the samples.
        if posterior[:, arm].sum() - 2.0 < MAX_SAMPLES - 0.5:
            posterior[:, arm] += (quality, 1.0 - quality)

    def _posterior(self, category: str) -> FloatArray:
        return self._posteriors.setdefault(category, np.ones((2, self._n_arms)))


def create(task: Task) -> Peer:
    """See `benchmarks.peers.make`."""
    peer = LiteLLMAdaptive(task.mean_costs(), task.seed)
    for row, x, arm, quality in warm_rows(task.warm):
        peer.learn(x, arm, quality, 0.0, task.warm_categories[row] if task.warm_categories else "")
    return peer
