"""The one formula that turns quality, cost and latency into a reward, and its expectation under the heads.

    r = w_q·q + w_c·(1 − min(c/c_ref, 1)) + w_l·(1 − min(l/l_ref, 1)),    weights normalised to sum 1

Prediction and log use the same formula. Knows nothing of how the heads were learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log

import numpy as np
from scipy.special import ndtr

from bandit.types import FloatArray, Objective, Price

__all__ = ["Scorer", "Utilities", "capped_lognormal", "reward"]

_LENGTHS = 512  # lengths of inputs whose prices are kept: requests repeat them, and they take a third of the time
_LOG_LARGEST = 80.0  # natural log of the largest number of tokens or seconds that is told from infinity


@dataclass(frozen=True, slots=True)
class Utilities:
    """Each arm's utility as a normal belief, with the predictions it came from; arrays of shape (n_arms,).

    `mean`, `sd`: belief about the expected reward. `quality` in [0, 1], `cost_usd` (NaN where unknown), `latency_s`:
    expected values for this request. `count`: discounted number of observations behind the arm's quality.
    `floor_weights`: how an exploration floor is to be spread over the arms, relative to each other; None: evenly.
    """

    mean: FloatArray
    sd: FloatArray
    quality: FloatArray
    cost_usd: FloatArray
    latency_s: FloatArray
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


def capped_lognormal(
    log_mean: FloatArray, log_sd: FloatArray, log_cap: FloatArray, expected: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """`E[min(X, cap)]` for `log X ~ N(log_mean, log_sd²)` and its derivative by `log_mean`; shapes broadcast.

    With `z = (ln cap − m)/s`: `E[X]·Φ(z − s) + cap·(1 − Φ(z))`, the limited expected value of a lognormal (Klugman,
    Panjer & Willmot, Loss Models, appendix A); the derivative is the first term. Needs log_sd > 0; `expected` is E[X].
    """
    z = (log_cap - log_mean) / log_sd
    below = expected * ndtr(z - log_sd)
    return below + np.exp(np.minimum(log_cap, _LOG_LARGEST)) * ndtr(-z), below


class Scorer:
    """The objective with the arms' prices: turns the heads' predictions into beliefs about each arm's reward."""

    def __init__(self, objective: Objective, prices: Sequence[Price | None]) -> None:
        """`prices` in the order of the arms; None: unknown.

        `varies` (2, n_arms): whether cost and latency depend on the answer; a cost by the call or the input does not.
        """
        self._weight_q, weight_c, weight_l = objective.weights
        self._cost_reference_usd = objective.cost_reference_usd
        self._input_usd = np.array([0.0 if p is None else p.input_per_million / 1e6 for p in prices])
        self._output_usd = np.array([0.0 if p is None else p.output_per_million / 1e6 for p in prices])
        self._call_usd = np.array([0.0 if p is None else p.per_call for p in prices])
        self.varies = np.stack((self._output_usd > 0.0, np.ones(len(prices), dtype=np.bool_)))
        self._tokens_per_usd = 1.0 / np.maximum(self._output_usd, 1e-30)
        self._unknown = np.array([np.nan if p is None else 0.0 for p in prices])
        # Rows: cost, latency, of which only those that carry weight are computed. A part's credit is
        # `max(rest − slope·E[min(X, cap)], 0)`; rest and cap of the cost (row 0) are each request's own.
        self._has_cost = weight_c > 0
        self._parts = slice(0 if weight_c > 0 else 1, 2 if weight_l > 0 else 1)
        n_arms = len(prices)
        scale = np.stack(
            (self._output_usd / objective.cost_reference_usd, np.full(n_arms, 1.0 / objective.latency_reference_s))
        )
        known = np.stack(([float(p is not None) for p in prices], np.ones(n_arms)))
        credit = np.array([[weight_c], [weight_l]]) * known
        self._scale, self._credit, self._slope = (a[self._parts] for a in (scale, credit, credit * scale))
        self._latency_log_cap = log(objective.latency_reference_s)
        self._priced = lru_cache(_LENGTHS)(self._price)

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
        fixed_usd, log_cap, rest = self._priced(input_tokens)
        logs, total = mean[1:], noise[1:] + variance[1:]
        expected = np.exp(np.minimum(logs + 0.5 * total, _LOG_LARGEST))
        utility = self._weight_q * mean[0]
        spread = (self._weight_q * self._weight_q) * variance[0]
        parts = self._parts
        if rest.size:
            capped, slope = capped_lognormal(logs[parts], np.sqrt(total[parts]), log_cap, expected[parts])
            utility += np.add.reduce(np.maximum(rest - self._slope * capped, 0.0))
            slope *= self._slope
            spread += np.add.reduce(slope * slope * variance[1:][parts])
        return Utilities(
            mean=utility,
            sd=np.sqrt(spread),
            quality=np.minimum(np.maximum(mean[0], 0.0), 1.0),
            cost_usd=fixed_usd + self._output_usd * np.maximum(expected[0] - 1.0, 0.0) + self._unknown,
            latency_s=expected[1],
            count=count,
        )

    def _price(self, input_tokens: int) -> tuple[FloatArray, FloatArray, FloatArray]:
        """What is paid before any output, shape (n_arms,), and what follows for the parts: log caps and rests."""
        fixed_usd = input_tokens * self._input_usd + self._call_usd
        log_cap = np.full(self._scale.shape, self._latency_log_cap)
        rest = np.ones(self._scale.shape)
        if self._has_cost:
            # Output tokens (plus 1) at which the whole cost reaches its reference; beyond it there is no more to lose.
            room_usd = np.maximum(self._cost_reference_usd - fixed_usd, 0.0)
            log_cap[0] = np.log1p(room_usd * self._tokens_per_usd)
            # The token head predicts log(1 + tokens): scale·(X − 1).
            rest[0] = 1.0 + self._scale[0] - fixed_usd / self._cost_reference_usd
        return fixed_usd, log_cap, self._credit * rest
