"""The direct method: what a model of the metric expects of the candidate, the log's own outcomes unused."""

from __future__ import annotations

import numpy as np

from evaluation.rounds import Rounds, Terms

__all__ = ["direct_method"]


def direct_method(rounds: Rounds) -> Terms:
    """mean_t Σ_a π(a|x_t) q̂(x_t, a) (Beygelzimer & Langford, 2009). As biased as the model is wrong; no weights."""
    return Terms(rounds.predicted_value, np.zeros(len(rounds)))
