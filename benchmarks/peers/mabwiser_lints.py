"""MABWiser (`mabwiser`): linear Thompson sampling, one ridge regression an arm.

It learns quality alone, one observation at a time.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from mabwiser.mab import MAB, LearningPolicy

from bandit.types import FloatArray
from benchmarks.peers import Peer, Task, Warm, warm_rows

__all__ = ["MabwiserLinTS", "create"]

_ALPHA: Final = 0.1


class MabwiserLinTS:
    """LinTS (Agrawal & Goyal, 2013) with ridge λ = 1 and standard deviations scaled by α = 0.1.

    Its default of α = 1 suits rewards with a variance of 1; cold, it did worse on `mmlu_pro` and `paretobandit`.
    Before the first observation it draws uniformly: the library predicts nothing until it was fitted.
    """

    name = "mabwiser_lints"

    def __init__(self, n_arms: int, seed: int, warm: Warm | None) -> None:
        self._n_arms = n_arms
        self._mab = MAB(list(range(n_arms)), LearningPolicy.LinTS(alpha=_ALPHA, l2_lambda=1.0), seed=seed)
        self._rng = np.random.default_rng(seed)
        self._fitted = False
        rows = list(warm_rows(warm))
        if rows:
            self._fit([row[1] for row in rows], [row[2] for row in rows], [row[3] for row in rows])

    def choose(self, x: FloatArray, category: str = "") -> int:
        """See `Peer.choose`."""
        del category
        return int(self._mab.predict([x])) if self._fitted else int(self._rng.integers(self._n_arms))

    def learn(self, x: FloatArray, arm: int, quality: float, cost_usd: float, category: str = "") -> None:
        """See `Peer.learn`."""
        del cost_usd, category
        self._fit([x], [arm], [quality])

    def _fit(self, contexts: list[FloatArray], arms: list[int], rewards: list[float]) -> None:
        self._mab.partial_fit(np.array(arms), np.array(rewards), np.array(contexts))
        self._fitted = True


def create(task: Task) -> Peer:
    """See `benchmarks.peers.make`. Warm-up rows are one batch."""
    return MabwiserLinTS(task.n_arms, task.seed, task.warm)
