"""Importance weighting by logged propensities: plain, self-normalised, and with clipped weights."""

from __future__ import annotations

import numpy as np

from evaluation.rounds import Rounds, Terms

__all__ = ["clipped_ips", "ips", "self_normalised_ips"]


def ips(rounds: Rounds) -> Terms:
    """mean_t w_t r_t, w = π/p (Horvitz & Thompson, 1952). Unbiased wherever the log has support; large weights hurt."""
    return Terms(np.zeros(len(rounds)), rounds.weight * rounds.known_value)


def self_normalised_ips(rounds: Rounds) -> Terms:
    """Σ w_t r_t / Σ w_t (Swaminathan & Joachims, 2015). Slightly biased, and it stays within the range of r."""
    return Terms(np.zeros(len(rounds)), rounds.weight * rounds.known_value, rounds.weight)


def clipped_ips(rounds: Rounds, threshold: float) -> Terms:
    """mean_t min(w_t, threshold) r_t (Ionides, 2008; Bottou et al., 2013). Biased low for r ≥ 0; ∞ is plain IPS."""
    return Terms(np.zeros(len(rounds)), np.minimum(rounds.weight, threshold) * rounds.known_value)
