"""What an outcome teaches: the values its heads learn, and what it cost against what was booked.

Plain arithmetic. Knows nothing of posteriors, limits or budgets.
"""

from __future__ import annotations

from math import isnan, log, log1p

import numpy as np

from bandit import bounds
from bandit.posterior import LATENCY, TOKENS
from bandit.types import Decision, Outcome, Price

__all__ = ["SHORTEST_S", "billed_tokens", "booked_usd", "head_values", "log_ratios"]

SHORTEST_S = 1e-4  # log latency needs a floor; no upstream answers faster


def head_values(outcome: Outcome, price: Price | None, input_tokens: int) -> dict[int, float]:
    """What a successful outcome teaches the heads of log(1 + output tokens) and of log latency, by head.

    `input_tokens` is the estimate made at the decision, for an outcome that has no count of its own.
    """
    values = {}
    tokens: float | None = outcome.output_tokens
    if tokens is None and outcome.cost_usd is not None:
        known = input_tokens if outcome.input_tokens is None else outcome.input_tokens
        tokens = billed_tokens(outcome.cost_usd, price, known)
    if tokens is not None:
        values[TOKENS] = log1p(tokens)
    if outcome.latency_s is not None:
        values[LATENCY] = log(max(outcome.latency_s, SHORTEST_S))
    return values


def billed_tokens(cost_usd: float, price: Price | None, input_tokens: float) -> float | None:
    """The output tokens that explain a cost, ≥ 0; None without a price for them."""
    if price is None or price.output_per_million <= 0:
        return None
    return max(0.0, (cost_usd - price.cost_usd(input_tokens, 0.0)) * 1e6 / price.output_per_million)


def booked_usd(decision: Decision) -> float:
    """The chosen arm's expected cost in USD, exactly as a log keeps it; 0 where it is unknown."""
    usd = float(np.float32(decision.predicted_cost_usd[decision.arms.index(decision.chosen)]))
    return 0.0 if isnan(usd) else usd


def log_ratios(decision: Decision, outcome: Outcome) -> dict[int, float]:
    """Log of realised over expected cost and latency, by row of `bandit.bounds`, as far as both are known and above 0.

    Expected as the decision's log has it, which for an attempt with another model holds that model's, too.
    """
    if outcome.model not in decision.arms:
        return {}
    arm, ratios = decision.arms.index(outcome.model), {}
    for row, expected, realised in (
        (bounds.COST, decision.predicted_cost_usd[arm], outcome.cost_usd),
        (bounds.LATENCY, decision.predicted_latency_s[arm], outcome.latency_s),
    ):
        usual = float(np.float32(expected))
        if realised is not None and realised > 0.0 and usual > 0.0:
            ratios[row] = log(realised) - log(usual)
    return ratios
