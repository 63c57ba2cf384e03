"""River (`river`): Thompson sampling, epsilon-greedy and UCB, which see no context, and its disjoint LinUCB.

They learn quality alone, with the library's defaults where it has any. UCB's δ = 0.2 did best of 0.1, 0.2, 0.5 and 1.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from river import bandit, proba

from bandit.types import FloatArray
from benchmarks.peers import Peer, Task, warm_rows

__all__ = ["River", "create"]

_EPSILON: Final = 0.1
_UCB_DELTA: Final = 0.2


class River:
    """One of River's policies.

    Thompson sampling has a Beta posterior, which counts only successes and failures: a quality between 0 and 1
    is a success with that probability (Agrawal & Goyal, 2012, algorithm 2).
    """

    def __init__(self, name: str, n_arms: int, seed: int) -> None:
        self.name = name
        self._arms: list[int | str] = list(range(n_arms))
        self._rng = np.random.default_rng(seed)
        self._policy: bandit.base.Policy
        if name == "river_thompson":
            self._policy = bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=seed)
        elif name == "river_epsilon":
            self._policy = bandit.EpsilonGreedy(epsilon=_EPSILON, seed=seed)
        elif name == "river_ucb":
            self._policy = bandit.UCB(delta=_UCB_DELTA, seed=seed)
        else:
            self._policy = bandit.LinUCBDisjoint(seed=seed)

    def choose(self, x: FloatArray, category: str = "") -> int:
        """See `Peer.choose`."""
        del category
        if isinstance(self._policy, bandit.LinUCBDisjoint):
            return int(self._policy.pull(self._arms, context=_features(x)))
        return int(self._policy.pull(self._arms))

    def learn(self, x: FloatArray, arm: int, quality: float, cost_usd: float, category: str = "") -> None:
        """See `Peer.learn`."""
        del cost_usd, category
        if isinstance(self._policy, bandit.LinUCBDisjoint):
            self._policy.update(arm, _features(x), quality)
        elif isinstance(self._policy, bandit.ThompsonSampling):
            self._policy.update(arm, bool(self._rng.random() < quality))
        else:
            self._policy.update(arm, quality)


def create(task: Task) -> Peer:
    """See `benchmarks.peers.make`."""
    peer = River(task.name, task.n_arms, task.seed)
    for _, x, arm, quality in warm_rows(task.warm):
        peer.learn(x, arm, quality, 0.0)
    return peer


def _features(x: FloatArray) -> dict[int, float]:
    return dict(enumerate(x.tolist()))
