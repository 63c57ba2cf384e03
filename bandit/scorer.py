"""The one formula that turns quality, cost and latency into a reward, and its expectation under the heads.

    r = w_q·q + w_c·(1 − min(c/c_ref, 1)) + w_l·(1 − min(l/l_ref, 1)),    weights normalised to sum 1

Prediction and log use the same formula. Knows nothing of how the heads were learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from scipy.special import ndtr

from bandit.types import FloatArray, Objective, Price

__all__ = ["Scorer", "Utilities", "capped_lognormal", "reward"]


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


def capped_lognormal(
    log_mean: FloatArray, log_sd: FloatArray, log_cap: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`E[min(X, cap)]` for `log X ~ N(log_mean, log_sd²)`, its derivative by `log_mean`, and `E[X]`; shapes broadcast.

    With `z = (ln cap − m)/s`: `e^{m+s²/2} Φ(z − s) + cap·(1 − Φ(z))`, the limited expected value of a lognormal
    (Klugman, Panjer & Willmot, Loss Models, appendix A); the derivative is the first term. Needs log_sd > 0.
    """
    z = (log_cap - log_mean) / log_sd
    tails = ndtr(np.stack((z - log_sd, -z)))
    expected = np.exp(np.minimum(log_mean + 0.5 * log_sd * log_sd, 80.0))
    below = expected * tails[0]
    return below + np.exp(np.minimum(log_cap, 80.0)) * tails[1], below, expected


class Scorer:
    """The objective with the arms' prices: turns the heads' predictions into beliefs about each arm's reward."""

    def __init__(self, objective: Objective, prices: Sequence[Price | None]) -> None:
        """`prices` in the order of the arms; None: unknown."""
        self._weight_q, *self._weights = objective.weights
        self._cost_reference_usd = objective.cost_reference_usd
        self._input_usd = np.array([0.0 if p is None else p.input_per_million / 1e6 for p in prices])
        self._output_usd = np.array([0.0 if p is None else p.output_per_million / 1e6 for p in prices])
        self._unknown = np.array([np.nan if p is None else 0.0 for p in prices])
        n_arms = len(prices)
        # Rows: cost, latency. A part's value is `scale·(X − shift)`, in units of its reference.
        self._shift = np.array([[1.0], [0.0]])  # the token head predicts log(1 + tokens)
        self._scale = np.stack(
            (self._output_usd / objective.cost_reference_usd, np.full(n_arms, 1.0 / objective.latency_reference_s))
        )
        known = np.stack(([float(p is not None) for p in prices], np.ones(n_arms)))
        self._credit = np.array(self._weights)[:, None] * known
        self._slope = self._credit * self._scale
        self._log_cap = np.full((2, n_arms), log(objective.latency_reference_s))

    def utilities(
        self, heads: tuple[FloatArray, FloatArray, FloatArray], input_tokens: int, count: FloatArray
    ) -> Utilities:
        """Beliefs about each arm's reward for a request of `input_tokens`.

        `heads` = (mean, variance of the mean, noise variance), each of shape (3, n_arms), rows: quality, log(1 + output
        tokens), log latency. The spread is carried over by the delta method (first order in the heads' own
        uncertainty), so it is an approximation where a head is both very unsure and near its reference. An arm of
        unknown cost gets no credit for cost, as if it cost the reference: unknown is never cheap.
        """
        mean, variance, noise = heads
        log_cap = self._log_cap
        fixed_usd = input_tokens * self._input_usd
        # Output tokens (plus 1) at which the whole cost reaches its reference; beyond it there is no more to lose.
        room_usd = np.maximum(self._cost_reference_usd - fixed_usd, 0.0)
        log_cap[0] = np.log1p(room_usd / np.maximum(self._output_usd, 1e-30))
        capped, slope, expected = capped_lognormal(mean[1:], np.sqrt(noise[1:] + variance[1:]), log_cap)
        spent = self._scale * (capped - self._shift)
        spent[0] += fixed_usd / self._cost_reference_usd
        credit = self._credit * np.maximum(1.0 - spent, 0.0)
        slope *= self._slope
        spread = (self._weight_q * self._weight_q) * variance[0] + (slope * slope * variance[1:]).sum(axis=0)
        return Utilities(
            mean=self._weight_q * mean[0] + credit.sum(axis=0),
            sd=np.sqrt(spread),
            quality=np.minimum(np.maximum(mean[0], 0.0), 1.0),
            cost_usd=fixed_usd + self._output_usd * np.maximum(expected[0] - 1.0, 0.0) + self._unknown,
            latency_s=expected[1],
            count=count,
        )
