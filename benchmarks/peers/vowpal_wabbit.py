"""Vowpal Wabbit (`vowpalwabbit`): contextual bandits with action-dependent features, SquareCB and softmax.

Every context is shared by the actions and crossed with the action's index, which gives each arm its own linear
model. It learns quality alone: it knows neither costs nor budgets, and a penalty for cost is no part of it.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import numpy as np
from vowpalwabbit import Workspace

from bandit.types import FloatArray
from benchmarks.peers import Peer, Task, warm_rows

__all__ = ["VowpalWabbit", "create"]

_EXPLORATION: Final = {"vw_squarecb": "--squarecb --gamma_scale 100", "vw_softmax": "--softmax --lambda 100"}


class VowpalWabbit:
    """`--cb_explore_adf`: the arm is drawn here from the probabilities that it computes; its cost is 1 − quality.

    SquareCB (Foster & Rakhlin, 2020) with γ = 100·√t, softmax with λ = 100: on `mmlu_pro` and `paretobandit`
    better than the defaults of 10 and 1, than λ = 10 or 30, and than `--cover`.
    """

    def __init__(self, name: str, n_arms: int, seed: int) -> None:
        self.name = name
        options = f"--cb_explore_adf {_EXPLORATION[name]} --interactions ca --quiet --random_seed {seed}"
        self._workspace = Workspace(options)
        self._actions = [f"|a {arm}" for arm in range(n_arms)]
        self._rng = np.random.default_rng(seed)
        self._propensities: deque[float] = deque()

    def choose(self, x: FloatArray, category: str = "") -> int:
        """See `Peer.choose`."""
        del category
        p = np.asarray(self._workspace.predict([_shared(x), *self._actions]), dtype=np.float64)
        arm = int(self._rng.choice(len(p), p=p / p.sum()))  # single precision: they sum to 1 within 1e-6
        self._propensities.append(float(p[arm]))
        return arm

    def learn(self, x: FloatArray, arm: int, quality: float, cost_usd: float, category: str = "") -> None:
        """See `Peer.learn`."""
        del cost_usd, category
        self.observe(x, arm, quality, self._propensities.popleft())

    def observe(self, x: FloatArray, arm: int, quality: float, propensity: float) -> None:
        """Learn one logged outcome, drawn with `propensity`."""
        actions = [
            f"0:{1.0 - quality:.6g}:{propensity:.6g} {a}" if i == arm else a for i, a in enumerate(self._actions)
        ]
        self._workspace.learn([_shared(x), *actions])


def create(task: Task) -> Peer:
    """See `benchmarks.peers.make`. Warm-up rows are learned as if a uniform policy had logged them."""
    peer = VowpalWabbit(task.name, task.n_arms, task.seed)
    for _, x, arm, quality in warm_rows(task.warm):
        peer.observe(x, arm, quality, 1.0 / task.n_arms)
    return peer


def _shared(x: FloatArray) -> str:
    return "shared |c " + " ".join(f"{i}:{value:.6g}" for i, value in enumerate(x.tolist()) if value)
