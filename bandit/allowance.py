"""Which of the feasible arms one request may use: by the caller's own limits on it, and by what the budget has left.

Both judge this very request, by high quantiles of its predicted cost and latency. Knows nothing of policies: what is
not allowed takes no part in the choice.
"""

from __future__ import annotations

import numpy as np

from bandit.pacing import Pacer
from bandit.types import BoolArray, FloatArray

__all__ = ["known_cost", "within_budget", "within_limits"]


def within_limits(feasible: BoolArray, over: FloatArray) -> BoolArray:
    """The arms that keep a request's own limits; where no feasible one does, the feasible one that is least over them.

    `over`: relative excess of each arm's 95 % quantiles, shape (n_arms,) (`RequestLimits.excess`).
    """
    allowed = over <= 0.0
    if (allowed & feasible).any():
        return np.asarray(allowed)
    least = np.where(feasible, over, np.inf)
    return np.asarray(feasible & (least <= least.min()))


def within_budget(
    feasible: BoolArray,
    allowed: BoolArray,
    pacer: Pacer,
    step: int,
    *,
    worst_usd: FloatArray,
    expected_usd: FloatArray,
) -> BoolArray:
    """The allowed arms that the bucket can pay for at worst, filtered ones (for their probes) included.

    The cheapest expected of the feasible ones where it can pay for none of them.
    `worst_usd`, `expected_usd`: cost of this request by arm, shape (n_arms,), NaN where unknown.
    """
    affordable = allowed & (known_cost(worst_usd) <= pacer.room_usd(step))
    if (affordable & feasible).any():
        return affordable
    expected = np.where(allowed & feasible, known_cost(expected_usd), np.inf)
    return np.asarray(allowed & feasible & (expected <= expected.min()))


def known_cost(cost_usd: FloatArray) -> FloatArray:
    """Unknown is never cheap: NaN becomes the largest known cost, or 0 where none is known."""
    unknown = np.isnan(cost_usd)
    if not unknown.any():
        return cost_usd
    return np.where(unknown, 0.0 if unknown.all() else np.nanmax(cost_usd), cost_usd)
