"""Exact action probabilities of Thompson sampling over independent normal utilities, by quadrature.

Pure arithmetic on arrays: no randomness, no state. The arm is drawn from what this module returns, so what is
logged is the probability that was used and not an estimate of it.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr, ndtri

from bandit.types import FloatArray

__all__ = ["best_arm_probabilities"]

_NODES_PER_ARM = 16
_MIN_SD = 1e-9
_SMALL = 1e-6  # a compliance so small that two such arms practically never take part at once
_ALL_RIVALS = 16  # up to so many arms, looking for those that cannot win costs more than it saves


def _nodes() -> FloatArray:
    """Standard normal quantiles at equal steps of probability, with tails out to ±4."""
    inner = ndtri((np.arange(_NODES_PER_ARM - 2) + 0.5) / (_NODES_PER_ARM - 2))
    return np.concatenate([[-4.0], inner, [4.0]])


_STANDARD_NODES = _nodes()


def best_arm_probabilities(mean: FloatArray, sd: FloatArray, compliance: FloatArray | None = None) -> FloatArray:
    """P(arm a has the largest sampled utility) for independent `u_a ~ N(mean_a, sd_a²)`.

    `mean` and `sd` have shape (n_arms,), sd ≥ 0; the result has the same shape, is ≥ 0 and sums to 1. With
    `compliance` c in [0, 1], same shape, not all 0, each arm takes part only with probability c_a (its sampled utility
    is −∞ otherwise), given that some arm does: Thompson sampling over whether an arm keeps its limits, too.

    It is `p_a ∝ c_a ∫ ∏_{b≠a} [1 − c_b + c_b Φ((u − μ_b)/s_b)] dΦ((u − μ_a)/s_a)`, evaluated as a Stieltjes sum: each
    arm's mass between two neighbouring nodes times the product of the others' mean there. The nodes are the union of
    every arm's own quantiles, so that an arm much narrower than the others is resolved too (a common equidistant grid
    steps over it). Cost: 16·K² normal distribution functions. Over random posteriors with K from 2 to 20 it is within
    0.0015 of 400 nodes an arm (99 of 100 within 0.001), and within 0.003 of simulation
    (tests/statistical/test_propensity.py). Equal arms of zero width share equally.
    """
    if compliance is None:
        compliance = np.ones(mean.shape[0])
    if mean.shape[0] <= _ALL_RIVALS and compliance.all():
        return _quadrature(mean, sd, compliance)
    # An arm that is 5 standard deviations below one that surely takes part cannot be the best (p < 1e-6).
    reach = 5.0 * sd
    surely = (mean - reach)[compliance > 1.0 - 1e-6].max(initial=-np.inf)
    rivals = (mean + reach >= surely) & (compliance > 0.0)
    p = np.zeros(mean.shape[0])
    p[rivals] = _quadrature(mean[rivals], sd[rivals], compliance[rivals])
    return p


def _quadrature(mean: FloatArray, sd: FloatArray, compliance: FloatArray) -> FloatArray:
    if mean.shape[0] == 1:
        return np.ones(1)
    column = mean[:, None]
    scale = np.maximum(sd, _MIN_SD * max(1.0, float(np.abs(mean).max())))[:, None]
    nodes = np.sort((column + scale * _STANDARD_NODES).ravel())
    # Where all are very unlikely to take part, only proportions matter; scaled up they are not lost in 1 − c.
    weight = (compliance * max(1.0, _SMALL / float(compliance.max())))[:, None]
    below = 1.0 - weight * ndtr((column - nodes) / scale)  # P(sampled utility ≤ node), shape (n_arms, n_nodes)
    left, right = below[:, :-1], below[:, 1:]
    # Twice the middle; constant factors cancel in the end. Dividing the whole product by an arm's own factor leaves the
    # others'; the floor keeps 0/0 out, where there is no mass anyway.
    middle = np.maximum(left + right, 1e-30)
    p = ((right - left) / middle) @ middle.prod(axis=0)
    return np.asarray(p / p.sum())
