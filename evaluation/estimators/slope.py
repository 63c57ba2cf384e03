"""Choosing an estimator's threshold from the data: SLOPE, Lepski's principle for off-policy evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

__all__ = ["slope"]


def slope(estimates: Sequence[float], half_widths: Sequence[float]) -> int:
    """Index of the estimate to use, of several ordered from least bias and most variance to most bias.

    `half_widths` are deviation bounds of each around its own expectation. The last i such that |θ_i − θ_j| ≤ c_i +
    (√6 − 1)·c_j for all j before it: as long as that holds, what moved the estimate may be chance (Su, Srinath &
    Krishnamurthy, 2020, theorem 3 and its remark: within a constant factor of the best of them).
    """
    chosen = 0
    for i in range(1, len(estimates)):
        apart = [
            abs(estimates[i] - estimates[j]) <= half_widths[i] + (sqrt(6.0) - 1.0) * half_widths[j] for j in range(i)
        ]
        if not all(apart):
            break
        chosen = i
    return chosen
