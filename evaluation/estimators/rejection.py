"""Rejection replay: the rounds in which a policy happens to draw the arm that was logged, as if they were its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bandit.types import BoolArray, FloatArray

__all__ = ["is_uniform", "rejection_replay"]

_ALIKE = 1e-9


def rejection_replay(drawn: NDArray[np.intp], chosen: NDArray[np.intp], value: FloatArray) -> tuple[float, int]:
    """(mean of the values of the rounds where `drawn` equals `chosen`, their number); NaN without any. All are (n,).

    Unbiased where the log drew every arm alike, also for a policy that learns from the accepted rounds alone (Li, Chu,
    Langford & Wang, 2011): those are then a stream of its own. Keeps one round in K.
    """
    accepted = (drawn == chosen) & ~np.isnan(value)
    count = int(np.count_nonzero(accepted))
    return (float(value[accepted].mean()) if count else float("nan")), count


def is_uniform(behaviour: FloatArray, arms: BoolArray) -> bool:
    """Whether every one of `arms` (K,) was drawn with the same probability in every round of `behaviour` (n, K)."""
    p = behaviour[:, arms]
    return bool(p.size) and float(p.min()) > 0.0 and float(p.max() - p.min()) <= _ALIKE
