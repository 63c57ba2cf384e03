"""What is measured of every decision: quality, cost, whether it was too slow, and the reward they add up to.

One formula for the log and for a candidate, so they can be compared: with a candidate's own prices, limit and objective
the log is measured by these, too. Knows no policy and no estimator.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from bandit.types import FloatArray, Objective, Price
from evaluation.logged import LoggedRounds

__all__ = ["METRICS", "Measures"]

METRICS: Final = ("quality", "cost_usd", "slow", "reward")


@dataclass(frozen=True, slots=True)
class Measures:
    """`objective` None: the reward as it was logged. `prices` None: costs as logged; else cost is tokens times these.

    `latency_limit_s`: a call is slow beyond it; None: nothing is measured of that.
    """

    objective: Objective | None = None
    prices: Mapping[str, Price | None] | None = None
    latency_limit_s: float | None = None

    def of(self, chunk: LoggedRounds) -> dict[str, FloatArray]:
        """By metric, shape (n,), NaN where unknown.

        `quality` in [0, 1], 0 where the model failed; `cost_usd`; `slow`: 1 beyond the limit or failed, else 0;
        `reward` in [0, 1].
        """
        cost = self.cost_usd(chunk)
        slow = np.full(len(chunk), np.nan)
        if self.latency_limit_s is not None:
            measured = chunk.answered & ~np.isnan(chunk.latency_s)
            slow[measured] = chunk.latency_s[measured] > self.latency_limit_s
            slow[chunk.failed] = 1.0
        return {"quality": chunk.quality, "cost_usd": cost, "slow": slow, "reward": self._reward(chunk, cost)}

    def cost_usd(self, chunk: LoggedRounds) -> FloatArray:
        """What each call cost, by these prices where both token counts are known."""
        if self.prices is None:
            return chunk.cost_usd
        each = np.array([_rates(self.prices.get(name)) for name in chunk.arms])
        fresh, output, cached, by_call = each[chunk.chosen].T
        saved = np.minimum(np.nan_to_num(chunk.tokens_cached), chunk.tokens_in) * (fresh - cached)
        cost = (chunk.tokens_in * fresh - saved + chunk.tokens_out * output) / 1e6 + by_call
        return np.where(np.isnan(cost), chunk.cost_usd, cost)

    def _reward(self, chunk: LoggedRounds, cost_usd: FloatArray) -> FloatArray:
        """The scorer's formula (`bandit.scorer`), NaN where a part that carries weight is unknown."""
        if self.objective is None:
            return np.where(chunk.failed, 0.0, chunk.logged_reward)
        goal = self.objective
        total = np.zeros(len(chunk))
        parts = (
            chunk.quality,
            1.0 - np.minimum(cost_usd / goal.cost_reference_usd, 1.0),
            1.0 - np.minimum(chunk.latency_s / goal.latency_reference_s, 1.0),
        )
        for weight, part in zip(goal.weights, parts, strict=True):
            if weight > 0:
                total = total + weight * part
        return total


def _rates(price: Price | None) -> tuple[float, float, float, float]:
    """USD per million tokens of input, of output, of input from a cache, and USD per call (`Price.cost_usd`)."""
    if price is None:
        return np.nan, np.nan, np.nan, np.nan
    cached = price.input_per_million if price.cached_input_per_million is None else price.cached_input_per_million
    return price.input_per_million, price.output_per_million, cached, price.per_call
