"""Choosing an estimator's threshold from the data: SLOPE, Lepski's principle for off-policy evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

__all__ = ["slope"]


def slope(estimates: Sequence[float], half_widths: Sequence[float]) -> int:
    """Index of the estimate to use, of several that differ in bias and variance.

    `half_widths` are deviation bounds of each around its own expectation. In the order of falling widths, hence of
    growing bias: the last i with |θ_i − θ_j| ≤ c_i + (√6 − 1)·c_j for all j before it. As long as that holds, what
    moved the estimate may be chance (Su, Srinath & Krishnamurthy, 2020, theorem 3; Tucker & Lee, 2021, whose order by
    width needs no bound on the bias). Equal widths keep their order.
    """
    order = sorted(range(len(estimates)), key=lambda i: -half_widths[i])
    chosen = order[0]
    for place in range(1, len(order)):
        i = order[place]
        apart = [
            abs(estimates[i] - estimates[j]) <= half_widths[i] + (sqrt(6.0) - 1.0) * half_widths[j]
            for j in order[:place]
        ]
        if not all(apart):
            break
        chosen = i
    return chosen
