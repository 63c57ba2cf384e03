"""The one formula that turns quality, cost and latency into a reward, and its expectation under the heads.

    r = w_q·q + w_c·(1 − min(c/c_ref, 1)) + w_l·(1 − min(l/l_ref, 1)),    weights normalised to sum 1

Prediction and log use the same formula. Knows nothing of how the heads were learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr

from bandit.types import FloatArray, Objective, Price

__all__ = ["PriceTable", "Utilities", "capped_lognormal", "expected_utilities", "reward"]


@dataclass(frozen=True, slots=True)
class Utilities:
    """Each arm's utility as a normal belief, with the predictions it came from; arrays of shape (n_arms,).

    `mean`, `sd`: belief about the expected reward. `quality` in [0, 1], `cost_usd` (NaN where unknown), `latency_s`:
    expected values for this request. `count`: discounted number of observations behind the arm's quality.
    """

    mean: FloatArray
    sd: FloatArray
    quality: FloatArray
    cost_usd: FloatArray
    latency_s: FloatArray
    count: FloatArray


@dataclass(frozen=True, slots=True)
class PriceTable:
    """The arms' prices as arrays of shape (n_arms,), USD per token, 0 where unknown.

    `known` is 1 or 0, to multiply with; `unknown` is 0 or NaN, to add.
    """

    input_usd: FloatArray
    output_usd: FloatArray
    known: FloatArray
    unknown: FloatArray

    @staticmethod
    def of(prices: Sequence[Price | None]) -> PriceTable:
        """The table of some prices, in the order of the arms."""
        return PriceTable(
            input_usd=np.array([0.0 if p is None else p.input_per_million / 1e6 for p in prices]),
            output_usd=np.array([0.0 if p is None else p.output_per_million / 1e6 for p in prices]),
            known=np.array([float(p is not None) for p in prices]),
            unknown=np.array([np.nan if p is None else 0.0 for p in prices]),
        )


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


def capped_lognormal(log_mean: FloatArray, log_sd: FloatArray, cap: FloatArray) -> tuple[FloatArray, FloatArray]:
    """`E[min(X, cap)]` for `log X ~ N(log_mean, log_sd²)`, and its derivative by `log_mean`; arrays broadcast.

    With `z = (ln cap − m)/s`: `e^{m+s²/2} Φ(z − s) + cap·(1 − Φ(z))`, the limited expected value of a lognormal
    (Klugman, Panjer & Willmot, Loss Models, appendix A); the derivative is the first term. Needs log_sd > 0, cap ≥ 0.
    """
    z = (np.log(np.maximum(cap, 1e-30)) - log_mean) / log_sd
    below = np.exp(np.minimum(log_mean + 0.5 * log_sd * log_sd, 80.0)) * ndtr(z - log_sd)
    return below + cap * ndtr(-z), below


def expected_utilities(
    objective: Objective,
    heads: tuple[FloatArray, FloatArray, FloatArray],
    input_tokens: int,
    prices: PriceTable,
    count: FloatArray,
) -> Utilities:
    """Beliefs about each arm's reward from the heads' predictive moments.

    `heads` = (mean, variance of the mean, noise variance), each of shape (3, n_arms), rows: quality, log(1 + output
    tokens), log latency. The spread is carried over by the delta method (first order in the heads' own uncertainty),
    so it is an approximation where a head is both very unsure and near its reference. An arm of unknown cost gets no
    credit for cost, as if it cost the reference: unknown is never cheap.
    """
    mean, variance, noise = heads
    weight_q, weight_c, weight_l = objective.weights
    log_mean, log_variance = mean[1:], noise[1:] + variance[1:]
    expected = np.exp(np.minimum(log_mean + 0.5 * log_variance, 80.0))  # rows: 1 + output tokens, latency
    fixed_usd = input_tokens * prices.input_usd
    cost_usd = fixed_usd + prices.output_usd * np.maximum(expected[0] - 1.0, 0.0) + prices.unknown
    utility = weight_q * mean[0]
    spread = (weight_q * weight_q) * variance[0]
    if weight_c > 0 or weight_l > 0:
        cap = np.empty_like(expected)
        room_usd = np.maximum(objective.cost_reference_usd - fixed_usd, 0.0)  # what is left for output
        cap[0] = 1.0 + room_usd / np.maximum(prices.output_usd, 1e-30)
        cap[1] = objective.latency_reference_s
        capped, slope = capped_lognormal(log_mean, np.sqrt(log_variance), cap)
        spent_usd = fixed_usd + prices.output_usd * np.maximum(capped[0] - 1.0, 0.0)
        credit = np.maximum(1.0 - spent_usd / objective.cost_reference_usd, 0.0) * prices.known
        utility = utility + weight_c * credit + weight_l * (1.0 - capped[1] / objective.latency_reference_s)
        slope_c = (weight_c / objective.cost_reference_usd) * prices.known * prices.output_usd * slope[0]
        slope_l = (weight_l / objective.latency_reference_s) * slope[1]
        spread = spread + slope_c * slope_c * variance[1] + slope_l * slope_l * variance[2]
    return Utilities(
        mean=utility,
        sd=np.sqrt(spread),
        quality=np.minimum(np.maximum(mean[0], 0.0), 1.0),
        cost_usd=cost_usd,
        latency_s=expected[1],
        count=count,
    )
