"""Slopes that arms share, against the joint normal of all coefficients at once and its marginal likelihood."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import invgamma, multivariate_normal, multivariate_t

from bandit.hierarchy import shared_slopes
from bandit.posterior import HeadPrior, Heads

OWN = np.array([1.0, 50.0, 20.0])  # precision of the intercept, then of each slope's deviation
EVEN = np.array([1.0, 50.0, 50.0])
KAPPA = 15.0
CALLS = (20, 45, 7)  # by arm


def world(seed=0, slope=0.5):
    """Contexts and answers by arm: all of one slope, and noise."""
    rng = np.random.default_rng(seed)
    x = [np.column_stack([np.ones(n), rng.standard_normal((n, 2))]) for n in CALLS]
    return x, [0.2 + slope * rows[:, 1] + 0.3 * rng.standard_normal(len(rows)) for rows in x]


def sums(x, y):
    grams = np.stack([np.diag(OWN) + rows.T @ rows for rows in x])
    return grams, np.stack([rows.T @ values for rows, values in zip(x, y, strict=True)])


def joint(x, y, own=OWN):
    """Posterior mean of (β₁, β₂, θ of each arm) by the precision matrix of their joint normal, shape (2 + 3·arms,)."""
    size = 2 + 3 * len(x)
    precision, signal = np.zeros((size, size)), np.zeros(size)
    precision[:2, :2] = KAPPA * np.eye(2)
    pick = np.zeros((3, 2))  # θ − pick·β has precision diag(own)
    pick[1:] = np.eye(2)
    for arm, (rows, values) in enumerate(zip(x, y, strict=True)):
        mine = slice(2 + 3 * arm, 5 + 3 * arm)
        precision[mine, mine] += np.diag(own) + rows.T @ rows
        precision[mine, :2] -= np.diag(own) @ pick
        precision[:2, mine] -= pick.T @ np.diag(own)
        precision[:2, :2] += pick.T @ np.diag(own) @ pick
        signal[mine] += rows.T @ values
    return np.linalg.solve(precision, signal)


def test_shared_and_own_slopes_are_the_mean_of_the_joint_normal():
    x, y = world()
    grams, moments = sums(x, y)
    beta, _ = shared_slopes(np.linalg.inv(grams), moments, OWN, KAPPA)
    expected = joint(x, y)
    assert beta[0] == 0.0
    np.testing.assert_allclose(beta[1:], expected[:2], atol=1e-14)
    theta = np.linalg.solve(grams, (moments + OWN * beta)[:, :, None])[:, :, 0]
    np.testing.assert_allclose(theta.ravel(), expected[2:], atol=1e-14)


def test_one_arm_alone_is_a_regression_whose_prior_variances_add_up():
    x, y = (part[:1] for part in world())
    grams, moments = sums(x, y)
    beta, price = shared_slopes(np.linalg.inv(grams), moments, OWN, KAPPA)
    theta = np.linalg.solve(grams[0], moments[0] + OWN * beta)
    both = np.append(1.0, 1.0 / (1.0 / OWN[1:] + 1.0 / KAPPA))
    np.testing.assert_allclose(theta, np.linalg.solve(np.diag(both) + x[0].T @ x[0], moments[0]), atol=1e-14)
    assert price > 0.0


def test_arms_without_answers_have_the_shared_slopes_and_do_not_move_them():
    x, y = world()
    grams, moments = sums(x, y)
    beta, price = shared_slopes(np.linalg.inv(grams), moments, OWN, KAPPA)
    grams = np.concatenate([grams, np.diag(OWN)[None]])
    moments = np.concatenate([moments, np.zeros((1, 3))])
    again, same = shared_slopes(np.linalg.inv(grams), moments, OWN, KAPPA)
    np.testing.assert_allclose(again, beta, atol=1e-14)
    assert same == pytest.approx(price, abs=1e-12)
    np.testing.assert_allclose(np.linalg.solve(grams[3], OWN * again), beta, atol=1e-14)


def covariance(x, *, slopes, own=OWN):
    """Of all answers, in units of the noise variance: noise, intercepts of each arm, and slopes if wanted."""
    everything = np.concatenate(x)
    total = np.eye(len(everything))
    if slopes:
        total += everything[:, 1:] @ everything[:, 1:].T / KAPPA
    start = 0
    for rows in x:
        mine = slice(start, start + len(rows))
        total[mine, mine] += 1.0 / own[0]
        if slopes:
            total[mine, mine] += (rows[:, 1:] / own[1:]) @ rows[:, 1:].T
        start += len(rows)
    return total


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_determinant_and_penalised_residual_are_the_marginal_likelihood(slope):
    """With one noise variance ~ IG(ν/2, νs²/2): ½[ln det A₀/A − ln det(I + J/κ) + (ν+n)·ln R₀/R], R with κβᵀβ in it."""
    x, y = world(1, slope)
    grams, moments = sums(x, y)
    beta, price = shared_slopes(np.linalg.inv(grams), moments, OWN, KAPPA)
    theta = np.linalg.solve(grams, (moments + OWN * beta)[:, :, None])[:, :, 0]
    nu, scale, n = 8.0, 0.16, sum(CALLS)
    squares = sum(values @ values for values in y)
    explained = ((moments + OWN * beta) * theta).sum() - len(x) * (OWN * beta) @ beta
    residual = nu * scale + squares - explained + KAPPA * beta @ beta
    residual_0 = nu * scale + squares - sum(values.sum() ** 2 / (len(values) + OWN[0]) for values in y)
    log_det = sum(
        np.linalg.slogdet(a)[1] - np.log(OWN).sum() - np.log((c + 1.0) / 1.0) for a, c in zip(grams, CALLS, strict=True)
    )
    mine = 0.5 * ((nu + n) * np.log(residual_0 / residual) - log_det - price)
    answers = np.concatenate(y)
    with_slopes, without = (
        multivariate_t(np.zeros(n), scale * covariance(x, slopes=kind), df=nu).logpdf(answers) for kind in (True, False)
    )
    assert mine == pytest.approx(with_slopes - without, abs=1e-10)


def evidence(h):
    return float(h.log_evidence[0].sum()) - 0.5 * float(h._price[0])


def taught(x, y, prior):
    h = Heads(len(x), 3, (prior,))
    for arm, (rows, values) in enumerate(zip(x, y, strict=True)):
        for row, value in zip(rows, values, strict=True):
            h.observe(arm, row, {0: float(value)}, made_at=0, now=0)
    h.settle(0)
    return h


PRIOR = HeadPrior(0.0, noise_sd=0.4, slope_precision=50.0, shared_precision=KAPPA, noise_observations=8.0)


@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_the_evidence_of_one_arm_is_its_marginal_likelihood_with_the_noise_integrated_out(slope):
    """Numerically over σ² ~ IG(ν/2, νs²/2), s² as drawn to the intercepts' residual: agreement to 1e-6 nats."""
    x, y = (part[:1] for part in world(2, slope))
    n, r = CALLS[0], y[0]
    nu = PRIOR.noise_observations
    scale = (r @ r - r.sum() ** 2 / (n + 1) + nu * 0.16) / (n + nu)

    def marginal(slopes):
        shape = np.eye(n) + 1.0
        if slopes:
            shape += x[0][:, 1:] @ x[0][:, 1:].T * (1 / 50.0 + 1 / KAPPA)
        top = multivariate_normal(np.zeros(n), scale * shape).logpdf(r)
        normal = lambda v: np.exp(multivariate_normal(np.zeros(n), v * shape).logpdf(r) - top)  # noqa: E731
        prior = invgamma(nu / 2, scale=nu * scale / 2)
        return top + np.log(quad(lambda v: normal(v) * prior.pdf(v), 1e-4, 5.0, limit=200, points=[scale])[0])

    assert evidence(taught(x, y, PRIOR)) == pytest.approx(marginal(True) - marginal(False), abs=1e-6)


def test_the_evidence_of_several_arms_is_near_that_of_a_common_noise():
    """Arms have a noise each; where it is in truth the same, the sum over them is within 10 % of the joint one."""
    x, y = world(3, 0.5)
    mine = evidence(taught(x, y, PRIOR))
    pooled = sum(v @ v - v.sum() ** 2 / (len(v) + 1) for v in y)
    scale = (pooled + 8 * 0.16) / (sum(CALLS) + 8)
    with_slopes, without = (
        multivariate_t(np.zeros(sum(CALLS)), scale * covariance(x, slopes=kind, own=EVEN), df=8.0).logpdf(
            np.concatenate(y)
        )
        for kind in (True, False)
    )
    assert mine == pytest.approx(with_slopes - without, rel=0.1)


@pytest.mark.parametrize("scale", [None, np.array([1.0, 1.0, 0.4])])
def test_settled_heads_of_several_arms_are_the_joint_normal_of_all_their_answers(scale):
    """Forgetting and a prior mean included, to 1e-12: weights γ^age enter every sum; `scale` is by column."""
    rng = np.random.default_rng(4)
    prior = HeadPrior(0.5, noise_sd=0.4, slope_precision=50.0, shared_precision=KAPPA)
    h = Heads(3, 3, (prior,), half_life_requests=30.0, slopes="always", precision_scale=scale)
    rows, values, arms = np.ones((90, 3)), np.empty(90), rng.integers(3, size=90)
    for t in range(90):
        rows[t, 1:] = rng.standard_normal(2)
        values[t] = 0.5 + 0.4 * rows[t, 1] + 0.2 * rng.standard_normal()
        h.observe(int(arms[t]), rows[t], {0: float(values[t])}, made_at=t, now=t)
        h.refresh(t)
    h.settle(90)
    root = np.sqrt(0.5 ** ((90 - np.arange(90)) / 30.0))
    x, y = rows * root[:, None], (values - 0.5) * root
    of = [arms == arm for arm in range(3)]
    own = EVEN if scale is None else EVEN * scale
    theta = joint([x[mine] for mine in of], [y[mine] for mine in of], own)[2:].reshape(3, 3)
    probe = np.array([1.0, 0.7, -1.1])
    np.testing.assert_allclose(h.predict(probe, 90)[0][0], 0.5 + theta @ probe, atol=1e-12)
    assert [h.expect(0, arm, probe, 90) for arm in range(3)] == pytest.approx(list(0.5 + theta @ probe), abs=1e-12)
