"""What the compiled modules of `bandit` compute, in plain numpy: what they are compared with.

Written for reading rather than speed, one array operation for each step of the formula.
"""

from __future__ import annotations

import numpy as np
from scipy.special import ndtr

CUTS, CUT_REACH, REACH = 128, 8, 5.0
PHI = ndtr(np.linspace(-CUT_REACH, CUT_REACH, 2 * CUT_REACH * CUTS + 1))
RISE = np.append(np.diff(PHI), 0.0)


def below(mean, scale, weight, nodes):
    """P(sampled utility ≤ node), shape (n_arms, n_nodes), Φ by linear interpolation in a table."""
    at = CUTS / scale[:, None] * nodes + (CUTS * CUT_REACH - CUTS / scale * mean)[:, None]
    at = np.clip(at, 0.0, PHI.size - 1.0)
    cell = at.astype(np.intp)
    phi = PHI[cell] + (at - cell) * RISE[cell]
    return 1.0 - weight[:, None] + weight[:, None] * phi


def shares(mean, scale, weight, nodes):
    """Each arm's mass between neighbouring nodes times the others' mean there, normalised."""
    f = below(mean, scale, weight, nodes)
    middle = 0.5 * (f[:, 1:] + f[:, :-1])
    p = np.maximum((np.diff(f, axis=1) / middle) @ middle.prod(axis=0), 0.0)
    return p / p.sum()


def few(mean, sd, compliance, standard_nodes):
    """The arms' own quantiles, sorted, over the arms that can be the best."""
    surely = (mean - REACH * sd)[compliance > 1.0 - 1e-6].max(initial=-np.inf)
    rivals = compliance > 0.0
    if not rivals.all() or mean.size > 24:
        rivals &= mean + REACH * sd >= surely
    if np.count_nonzero(rivals) > 24:
        return None
    mean, sd, compliance = mean[rivals], sd[rivals], compliance[rivals]
    scale = np.maximum(sd, 1e-9 * max(1.0, np.abs(mean).max()))
    weight = compliance * max(1.0, 1e-6 / compliance.max())
    p = np.zeros(rivals.size)
    nodes = np.sort((mean[:, None] + scale[:, None] * standard_nodes[: mean.size]).ravel())
    p[rivals] = shares(mean, scale, weight, nodes) if mean.size > 1 else 1.0
    return p


def beliefs(objective, prices, heads, input_tokens):
    """Rows: mean and sd of the utility, quality, cost in USD, latency in s, log sds of these two."""
    mean, variance, noise = heads
    weight_q, weight_c, weight_l = objective.weights
    input_usd, output_usd, call_usd = (
        np.array([0.0 if p is None else getattr(p, name) for p in prices]) * unit
        for name, unit in (("input_per_million", 1e-6), ("output_per_million", 1e-6), ("per_call", 1.0))
    )
    known = np.array([p is not None for p in prices])
    fixed_usd = input_tokens * input_usd + call_usd
    total = noise[1:] + variance[1:]
    expected = np.exp(np.minimum(mean[1:] + 0.5 * total, 80.0))
    scale = np.stack(
        (output_usd / objective.cost_reference_usd, np.full(known.size, 1 / objective.latency_reference_s))
    )
    room_usd = np.maximum(objective.cost_reference_usd - fixed_usd, 0.0)
    log_cap = np.stack(
        (np.log1p(room_usd / np.maximum(output_usd, 1e-30)), np.full(known.size, np.log(objective.latency_reference_s)))
    )
    credit = np.stack((weight_c * known, np.full(known.size, weight_l)))
    rest = credit * np.stack((1 + scale[0] - fixed_usd / objective.cost_reference_usd, np.ones(known.size)))
    z = (log_cap - mean[1:]) / np.sqrt(total)
    slope = expected * ndtr(z - np.sqrt(total))
    capped = slope + np.exp(np.minimum(log_cap, 80.0)) * ndtr(-z)
    utility = weight_q * mean[0] + np.maximum(rest - credit * scale * capped, 0.0).sum(axis=0)
    spread = weight_q**2 * variance[0] + ((credit * scale * slope) ** 2 * variance[1:]).sum(axis=0)
    cost_usd = np.where(known, fixed_usd + output_usd * np.maximum(expected[0] - 1.0, 0.0), np.nan)
    log_sd = np.sqrt(total) * np.stack((output_usd > 0, np.ones(known.size)))
    return np.vstack((utility, np.sqrt(spread), np.clip(mean[0], 0, 1), cost_usd, expected[1], log_sd))


def predictions(h, x, decay):
    """(mean, variance of that mean, noise variance) of `Heads` h at x, each of shape (n_heads, n_arms)."""
    precision = h._intercept_precision + decay * h.weight
    slopes = h.uses_slopes[:, None]
    mean = h._center + np.where(slopes, h._theta @ x, decay * h.moment[:, :, 0] / precision)
    noise = np.where(slopes, h._noise[1], h._noise[0])
    spread = np.einsum("haij,i,j->ha", h._inverse, x, x) if h.uses_slopes.any() else 1.0 / precision
    return mean, noise * np.where(slopes, np.maximum(spread, 1e-12), 1.0 / precision), noise


def noises(h, decay):
    """Noise variances of the intercept-only models of `Heads` h, shape (n_heads, n_arms)."""
    weight = decay * h.weight
    precision = h._intercept_precision + weight
    residual = np.maximum(decay * h.square - (decay * h.moment[:, :, 0]) ** 2 / precision, 0.0)
    totals = residual.sum(axis=1, keepdims=True) + h._noise_floor, weight.sum(axis=1, keepdims=True) + h._noise_weight
    return (residual + h._noise_weight * totals[0] / totals[1]) / (h._noise_weight + weight)


def shared_slopes(inverse, moment, precision, shared_precision):
    """β = (κI + Σ J)⁻¹ Σ h with `J = Λ − ΛA⁻¹Λ` and `h = ΛA⁻¹m`, and log det(I + J/κ), on the slopes."""
    own = np.diag(precision)
    information = sum(own - own @ a @ own for a in inverse)[1:, 1:]
    signal = sum(own @ a @ m for a, m in zip(inverse, moment, strict=True))[1:]
    scaled = np.eye(len(signal)) + information / shared_precision
    return np.append(0.0, np.linalg.solve(scaled, signal / shared_precision)), np.linalg.slogdet(scaled)[1]
