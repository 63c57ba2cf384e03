"""Upper bounds on what one request will cost and how long it will take, by arm.

Owns by how much realised values went beyond what was expected. Knows nothing of limits, budgets or policies: it says
"95 of 100 such requests stay below this", and others decide what follows.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import Any

import numpy as np

from bandit.types import FloatArray

__all__ = ["COST", "LATENCY", "Bounds"]

COST, LATENCY = 0, 1
_QUANTILE = 0.95
_NORMAL = 1.6449  # the standard normal's 95 % quantile
_WINDOW = 256
_ENOUGH = 20  # usable ratios after which their own quantile takes over; of fewer, none has 95 % below it
_FEW = 3  # outcomes before which what an arm costs is anybody's guess
_MARGIN = 1.5  # on the largest ratio seen: the next largest is often larger, and the bound is to hold
_EVERY = 8  # outcomes between two looks, once there are many


class Bounds:
    """95 % quantiles of cost and latency for one request: what is expected of it times a quantile of past ratios.

    The ratio of an outcome is realised over expected, as logged with its decision; the factor is the 95 % quantile of
    an arm's latest 256 (split conformal prediction, Lei et al., 2018, on a sliding window). So coverage rests neither
    on lognormal tails nor on a right estimate of the input's length; it holds on average over the requests an arm was
    sent, not for each kind of them. The first half of what an arm did is left out, while that is less than 256: how
    wrong expectations were before it was known says nothing about now. With fewer than 20 usable ratios the lognormal's
    own quantile stands in, and before its third outcome an arm's median: the quantile of a guess would rule it out for
    ever.

    A budget that must hold for every window asks for more: `worst_cost` takes half as much again as the largest of the
    usable ratios.
    """

    def __init__(self, n_arms: int) -> None:
        self._ratios = [[deque[float](maxlen=_WINDOW) for _ in range(n_arms)] for _ in range(2)]
        self._seen = np.zeros((2, n_arms), dtype=np.int64)
        self._z = np.zeros((2, n_arms))
        self._upper = np.full((2, n_arms), np.nan)  # log of the factor, where there are enough ratios
        self._worst = np.full(n_arms, -np.inf)

    def observe(self, row: int, arm: int, log_ratio: float) -> None:
        """Natural log of realised over expected: cost (row 0) or latency (row 1) of one outcome."""
        self._ratios[row][arm].append(log_ratio)
        self._seen[row, arm] += 1
        seen = self._seen[row, arm]
        if seen < 4 * _ENOUGH or seen % _EVERY == 0:
            self._note(row, arm)

    def of(self, cost_usd: FloatArray, latency_s: FloatArray, log_sd: FloatArray) -> tuple[FloatArray, FloatArray]:
        """(cost in USD, NaN where unknown; latency in s), each of shape (n_arms,).

        `cost_usd`, `latency_s`: expected values for this request. `log_sd` (2, n_arms): predictive standard deviations
        of their logs.
        """
        factor = np.exp(np.where(np.isnan(self._upper), _lognormal(self._z, log_sd), self._upper))
        return cost_usd * factor[COST], latency_s * factor[LATENCY]

    def worst_cost(self, cost_usd: FloatArray, log_sd: FloatArray) -> FloatArray:
        """The most a request is expected to cost by arm, in USD, shape (n_arms,); NaN where unknown."""
        known = np.isfinite(self._upper[COST])
        factor = np.where(known, self._worst, np.maximum(_lognormal(self._z[COST], log_sd[COST]), self._worst))
        return np.asarray(cost_usd * _MARGIN * np.exp(factor))

    def state(self) -> list[list[list[float]]]:
        """By row and arm: how many outcomes there were, then the latest ratios; `load` takes it back."""
        return [
            [[float(seen), *ratios] for seen, ratios in zip(self._seen[row].tolist(), arms, strict=True)]
            for row, arms in enumerate(self._ratios)
        ]

    def load(self, state: Any) -> None:
        """Take over a state of the same number of arms; an empty entry is an arm that nothing is known of."""
        for row, arms in enumerate(state):
            for arm, values in enumerate(arms):
                self._seen[row, arm] = int(values[0]) if values else 0
                self._ratios[row][arm] = deque(values[1:], maxlen=_WINDOW)
                self._note(row, arm)

    def _note(self, row: int, arm: int) -> None:
        seen = int(self._seen[row, arm])
        self._z[row, arm] = _NORMAL if seen >= _FEW else 0.0
        usable = list(self._ratios[row][arm])[-ceil(seen / 2) :] if seen >= _FEW else []
        usable.sort()
        enough = len(usable) >= _ENOUGH
        self._upper[row, arm] = usable[ceil(_QUANTILE * (len(usable) + 1)) - 1] if enough else np.nan
        if row == COST:
            self._worst[arm] = usable[-1] if usable else -np.inf


def _lognormal(z: FloatArray, log_sd: FloatArray) -> FloatArray:
    """Log of the ratio of a lognormal's quantile at z to its mean."""
    return np.asarray(z * log_sd - 0.5 * log_sd * log_sd)
