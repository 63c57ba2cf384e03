"""Whether slopes are used: evidence opens the gate, its loss shuts it, and noise does neither."""

from __future__ import annotations

import numpy as np

from bandit.posterior import HeadPrior, Heads

PRIOR = HeadPrior(mean=0.5, noise_sd=0.4)  # own slopes 50, shared slopes 15


def heads(n_arms=1, d=1, *, half_life=None, slopes="auto"):
    return Heads(n_arms, d, (PRIOR,), half_life_requests=half_life, slopes=slopes)


def contexts(rng, n, d):
    return np.column_stack([np.ones(n), rng.standard_normal((n, d - 1))])


def test_evidence_of_aged_data_is_that_of_the_discounted_sums():
    """Every observation's exponent is w; rebuilt 70 steps after the last one. One arm: both priors' variances add up.

    ½[ln det A₀/A − ln det A₀'/A' + (ν + Σw)·ln R₀/R], R the penalised residual with ν times the drawn prior of σ².
    """
    rng = np.random.default_rng(8)
    x = contexts(rng, 40, 3)
    y = 0.5 + 0.3 * x[:, 1] + 0.1 * rng.standard_normal(40)
    h = heads(d=3, half_life=60.0)
    for t in range(40):
        h.observe(0, x[t], {0: y[t]}, made_at=t, now=t)
    h.refresh(112)  # every eighth request looks at the noise; aged by more than 2 %: rebuilt
    w = 0.5 ** ((112 - np.arange(40)) / 60.0)
    total, r = 8.0 + w.sum(), y - 0.5
    rss_0 = w @ (r * r) - (w @ r) ** 2 / (1.0 + w.sum())
    floor = 8.0 * (rss_0 + 8.0 * 0.16) / total
    prior = np.diag([1.0, *[1 / (1 / 50 + 1 / 15)] * 2])
    a, b = prior + (x.T * w) @ x, x.T @ (w * r)
    rss = w @ (r * r) - b @ np.linalg.solve(a, b)
    log_det = np.linalg.slogdet(a)[1] - np.linalg.slogdet(prior)[1] - np.log(1.0 + w.sum())
    expected = 0.5 * (total * np.log((rss_0 + floor) / (rss + floor)) - log_det)
    assert abs(float(h.log_evidence[0, 0]) - 0.5 * float(h._price[0]) - expected) < 1e-9


def learn(h, n, outcome, *, d=5, seed=0, start=0, arms=None):
    """Feed n observations; whether the gate was ever open."""
    rng = np.random.default_rng(seed)
    ever = False
    for t, x in enumerate(contexts(rng, n, d), start):
        arm = int(rng.choice(arms if arms is not None else h.n_arms))
        h.observe(arm, x, {0: outcome(x, rng)}, made_at=t, now=t)
        h.refresh(t)
        ever |= bool(h.uses_slopes[0])
    return ever


def test_pure_noise_opens_the_gate_no_more_often_than_its_evidence_allows():
    """A Bayes factor passes e² under the smaller model with probability ≤ e⁻² = 0.135, whenever one looks.

    20 runs of 600 calls, fixed seeds: at most 2.7 + 3·√(20·0.135·0.865) = 7; and at the end it is shut in all.
    """
    opened = 0
    for seed in range(20):
        h = heads(n_arms=3, d=5)
        opened += learn(h, 600, lambda _, rng: 0.5 + 0.3 * rng.standard_normal(), seed=seed)
        assert not h.uses_slopes[0]
    assert opened <= 7


def linear(x, rng):
    return 0.5 + 0.3 * x[1] + 0.1 * rng.standard_normal()


def test_a_strong_signal_opens_the_gate_and_predictions_follow_the_context():
    h = heads(n_arms=2, d=5)
    learn(h, 1000, linear)
    assert h.uses_slopes[0]
    probe = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    # About 500 observations an arm: J = 50·500/550 = 45.5 each, β = 0.3·91/(91 + 15) = 0.258, so a slope of
    # (500·0.3 + 50·0.258)/550 = 0.296, ± 3 sds of intercept and slope, 3·√2·0.1/√500, and what the cache lags by.
    np.testing.assert_allclose(h.predict(probe, 1000)[0][0], 0.5 + 0.296, atol=0.025)


def test_the_gate_opens_although_the_first_arm_never_answers():
    h = heads(n_arms=2, d=5)
    learn(h, 1000, linear, arms=[1])
    assert h.uses_slopes[0]


def test_the_gate_shuts_again_when_the_signal_has_been_forgotten():
    h = heads(n_arms=2, d=5, half_life=50.0)
    learn(h, 600, linear)
    assert h.uses_slopes[0]
    learn(h, 3000, lambda _, rng: 0.5 + 0.3 * rng.standard_normal(), seed=1, start=600)
    assert not h.uses_slopes[0]


def test_a_context_free_head_never_uses_slopes():
    h = heads(n_arms=2, d=5, slopes="never")
    assert not learn(h, 1000, linear)
    ahead, back = (h.predict(np.array([1.0, z, 0, 0, 0]), 1000)[0] for z in (1.0, -1.0))
    np.testing.assert_array_equal(ahead, back)
