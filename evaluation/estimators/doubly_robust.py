"""Doubly robust estimators: a prediction for every arm, corrected by weighted residuals of the arm that was drawn."""

from __future__ import annotations

import numpy as np

from bandit.types import FloatArray
from evaluation.rounds import Rounds, Terms

__all__ = ["doubly_robust", "self_normalised_dr", "shrunk_dr", "switch_dr"]


def doubly_robust(rounds: Rounds) -> Terms:
    """mean_t [Σ_a π(a) q̂(a) + w_t (r_t − q̂(a_t))] (Dudík, Langford & Li, 2011).

    Unbiased with right propensities, however wrong q̂ is, as long as q̂ was made without the round. Fitted with the
    weights of `evaluation.estimators.regression.mrdr_weight` it is the more robust DR of Farajtabar et al. (2018).
    """
    return Terms(rounds.predicted_value, rounds.weight * _residual(rounds))


def self_normalised_dr(rounds: Rounds) -> Terms:
    """mean_t Σ_a π(a) q̂(a) + Σ w_t (r_t − q̂(a_t)) / Σ w_t."""
    weight = rounds.weight
    return Terms(rounds.predicted_value, weight * _residual(rounds), weight)


def switch_dr(rounds: Rounds, threshold: float) -> Terms:
    """DR whose residuals count only where w_t ≤ threshold (Wang, Agarwal & Dudík, 2017): beyond it, the prediction."""
    weight = rounds.weight
    return Terms(rounds.predicted_value, np.where(weight <= threshold, weight, 0.0) * _residual(rounds))


def shrunk_dr(rounds: Rounds, threshold: float) -> Terms:
    """DR with optimistic shrinkage: weights λw / (w² + λ) (Su, Dimakopoulou, Krishnamurthy & Dudík, 2020).

    `threshold` is √λ: about the weight at which shrinking begins, in the same unit as the other estimators'. No weight
    is then larger than √λ/2; 0 is the direct method, ∞ plain DR.
    """
    weight = rounds.weight
    if not np.isfinite(threshold):
        return Terms(rounds.predicted_value, weight * _residual(rounds))
    strength = threshold * threshold
    shrunk = strength * weight / np.maximum(weight * weight + strength, 1e-300)
    return Terms(rounds.predicted_value, shrunk * _residual(rounds))


def _residual(rounds: Rounds) -> FloatArray:
    return rounds.known_value - np.where(rounds.observed, rounds.predicted_chosen, 0.0)
