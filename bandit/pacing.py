"""Keeps a pool's realised spend per request at its budget by pricing cost in the utility.

Owns the multiplier λ. Knows nothing of arms or policies: it is told what a request cost and says what a dollar weighs.
"""

from __future__ import annotations

from bandit.errors import InvalidInput

__all__ = ["Pacer"]

_STEP = 0.05
_LARGEST_GAP = 4.0  # one very dear call moves λ by at most four average budgets


class Pacer:
    """Dual ascent on the budget constraint: `λ ← [λ + η·(c/B − 1)]₊` on realised cost, steps clipped.

    The policy subtracts `λ·ĉ/B` from each arm's utility (Agrawal & Devanur, 2014; Balseiro & Gur, 2019). A request
    whose cost is unknown moves nothing.
    """

    def __init__(self, usd_per_request: float) -> None:
        if not usd_per_request > 0:
            raise InvalidInput("budget.usd_per_request", "must be above 0")
        self.usd_per_request = usd_per_request
        self.multiplier = 0.0

    def spend(self, cost_usd: float) -> None:
        """One request's realised cost in USD."""
        gap = min(cost_usd / self.usd_per_request - 1.0, _LARGEST_GAP)
        self.multiplier = max(0.0, self.multiplier + _STEP * gap)
