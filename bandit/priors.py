"""What is believed of a head before anything was seen: plain values, with the measurements behind their defaults."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["HeadPrior"]


@dataclass(frozen=True, slots=True)
class HeadPrior:
    """Prior of one head: intercept `mean`, noise standard deviation, and precisions in units of one observation.

    `intercept_precision` p means the prior mean weighs as much as p observations. `slope_precision` is strong
    (20 to 100): with weak slopes a contextual sampler does worse than a context-free one on real outcomes. It holds an
    arm's slopes to those that all arms share, which `shared_precision` holds to 0: categories are easy or hard for
    all models far more than for one (on three sets of real outcomes 0.11, 0.06 and 0.13 against 0.05, 0.03 and 0.12).
    """

    mean: float
    noise_sd: float
    intercept_precision: float = 1.0
    slope_precision: float = 50.0
    shared_precision: float = 15.0
    noise_observations: float = 8.0
