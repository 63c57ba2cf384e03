"""The one formula that turns quality, cost and latency into a reward, and its expectation under the heads.

    r = w_q·q + w_c·(1 − min(c/c_ref, 1)) + w_l·(1 − min(l/l_ref, 1)),    weights normalised to sum 1

Prediction and log use the same formula. Knows nothing of how the heads were learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bandit._beliefs import Beliefs, capped_lognormal
from bandit.types import FloatArray, Objective, Price

__all__ = ["Scorer", "Utilities", "capped_lognormal", "reward"]


@dataclass(frozen=True, slots=True)
class Utilities:
    """Each arm's utility as a normal belief, with the predictions it came from; arrays of shape (n_arms,).

    `mean`, `sd`: belief about the expected reward. `quality` in [0, 1], `cost_usd` (NaN where unknown), `latency_s`:
    expected values for this request. `log_sd` (2, n_arms): predictive standard deviations of log cost (0 where it does
    not depend on the answer) and log latency. `count`: discounted number of observations behind the arm's quality.
    `floor_weights`: how an exploration floor is to be spread over the arms, relative to each other; None: evenly.
    """

    mean: FloatArray
    sd: FloatArray
    quality: FloatArray
    cost_usd: FloatArray
    latency_s: FloatArray
    log_sd: FloatArray
    count: FloatArray
    floor_weights: FloatArray | None = None


def reward(
    objective: Objective, quality: float | None, cost_usd: float | None, latency_s: float | None
) -> float | None:
    """The reward in [0, 1] of one realised call, or None when a part that carries weight is unknown."""
    weight_q, weight_c, weight_l = objective.weights
    total = 0.0
    for weight, value, reference in (
        (weight_c, cost_usd, objective.cost_reference_usd),
        (weight_l, latency_s, objective.latency_reference_s),
    ):
        if weight > 0:
            if value is None:
                return None
            total += weight * (1.0 - min(value / reference, 1.0))
    if weight_q > 0:
        if quality is None:
            return None
        total += weight_q * quality
    return total


class Scorer:
    """The objective with the arms' prices: turns the heads' predictions into beliefs about each arm's reward."""

    def __init__(self, objective: Objective, prices: Sequence[Price | None]) -> None:
        """`prices` in the order of the arms; None: unknown."""
        known = [Price(0.0, 0.0) if price is None else price for price in prices]
        table = [
            [price.input_per_million / 1e6 for price in known],
            [price.output_per_million / 1e6 for price in known],
            [price.per_call for price in known],
            [float(price is not None) for price in prices],
        ]
        self._beliefs = Beliefs(
            objective.weights, objective.cost_reference_usd, objective.latency_reference_s, np.array(table)
        )

    def utilities(
        self, heads: tuple[FloatArray, FloatArray, FloatArray], input_tokens: int, count: FloatArray
    ) -> Utilities:
        """Beliefs about each arm's reward for a request of `input_tokens`.

        `heads` = (mean, variance of the mean, noise variance), each of shape (3, n_arms), rows: quality, log(1 + output
        tokens), log latency. The spread is carried over by the delta method (first order in the heads' own
        uncertainty), so it is an approximation where a head is both very unsure and near its reference. An arm of
        unknown cost gets no credit for cost, as if it cost the reference: unknown is never cheap.
        """
        beliefs = self._beliefs.of(*heads, input_tokens)
        mean, sd, quality, cost_usd, latency_s = beliefs[:5]
        return Utilities(
            mean=mean,
            sd=sd,
            quality=quality,
            cost_usd=cost_usd,
            latency_s=latency_s,
            count=count,
            log_sd=beliefs[5:],
        )
