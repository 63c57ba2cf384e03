"""The heads against hand arithmetic, a direct solve, and scipy's Student t."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_t

from bandit import snapshot
from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.posterior import HeadPrior, Heads

PRIOR = HeadPrior(mean=0.5, noise_sd=0.4)  # intercept precision 1, slope precision 50, noise worth 4 observations
ONE = np.ones(1)


def heads(n_arms=1, d=1, *, half_life=None, slopes="never", priors=(PRIOR,)):
    return Heads(n_arms, d, priors, half_life_requests=half_life, slopes=slopes)


def contexts(rng, n, d):
    return np.column_stack([np.ones(n), rng.standard_normal((n, d - 1))])


def direct(prior, x, y, w):
    """(θ, A⁻¹, σ²) of the weighted regression by its textbook formulas, every observation at once."""
    d = x.shape[1]
    precision = np.diag([prior.intercept_precision] + [prior.slope_precision] * (d - 1))
    center = np.zeros(d)
    center[0] = prior.mean
    a = precision + (x.T * w) @ x
    theta = np.linalg.solve(a, precision @ center + x.T @ (w * y))
    rss = np.sum(w * y * y) + center @ precision @ center - theta @ a @ theta
    nu = prior.noise_observations
    return theta, np.linalg.inv(a), (nu * prior.noise_sd**2 + rss) / (nu + w.sum())


def predictions(h, x, now):
    """(mean, its variance, noise) of head 0 and arm 0 from rebuilt caches."""
    h.settle(now)
    return np.array([part[0, 0] for part in h.predict(x, now)])


def test_three_observations_by_hand():
    """1, 1, 0 around the prior 0.5: b = 0.5, A = 4, residual = 0.75 − 0.25/4, σ² = (0.64 + 0.6875)/7."""
    h = heads()
    for t, y in enumerate((1.0, 1.0, 0.0)):
        h.observe(0, ONE, {0: y}, made_at=t, now=t)
    noise = (0.64 + 0.6875) / 7
    np.testing.assert_allclose(predictions(h, ONE, 3), [0.625, noise / 4, noise], rtol=1e-14)
    np.testing.assert_allclose(h.averages(0, 3), [0.625])
    np.testing.assert_allclose(h.counts(0, 3), [3.0])


def test_without_data_every_model_predicts_the_prior():
    x = np.array([1.0, 2.0])
    np.testing.assert_allclose(predictions(heads(d=2), x, 9), [0.5, 0.16, 0.16])
    # 1/1 + 2²/50
    np.testing.assert_allclose(predictions(heads(d=2, slopes="always"), x, 9), [0.5, 0.16 * 1.08, 0.16])


def test_five_dimensions_agree_with_a_direct_solve():
    """Agreement to 1e-10."""
    rng = np.random.default_rng(1)
    x = contexts(rng, 128, 5)
    y = 0.3 + x @ np.array([0.1, 0.2, -0.1, 0.0, 0.05]) + 0.2 * rng.standard_normal(128)
    h = heads(d=5, slopes="always")
    for t in range(128):
        h.observe(0, x[t], {0: y[t]}, made_at=t, now=t)
    theta, inverse, noise = direct(PRIOR, x, y, np.ones(128))
    probe = contexts(rng, 1, 5)[0]
    expected = [theta @ probe, noise * (probe @ inverse @ probe), noise]
    np.testing.assert_allclose(predictions(h, probe, 128), expected, rtol=1e-10)


def test_incremental_equals_batch_but_for_the_latest_observations():
    """The cached regression is that of all but the last k, k at most a sixteenth and 32; intercepts know them all."""
    rng = np.random.default_rng(2)
    n = 1000
    x, y = contexts(rng, n, 8), rng.random(n)
    probe = contexts(rng, 1, 8)[0]
    always, never = heads(d=8, slopes="always"), heads(d=8)
    lags = set()
    for t in range(n):
        for h in (always, never):
            h.observe(0, x[t], {0: y[t]}, made_at=t, now=t)
        if t % 13 == 0 or t > n - 70:
            mean, variance, noise = (part[0, 0] for part in always.predict(probe, t))
            known = t + 1
            for k in range(min(known // 16, 32) + 1):
                theta, inverse, sigma2 = direct(PRIOR, x[: known - k], y[: known - k], np.ones(known - k))
                if np.allclose(
                    [mean, variance, noise], [theta @ probe, sigma2 * probe @ inverse @ probe, sigma2], 1e-9
                ):
                    lags.add(k)
                    break
            else:
                pytest.fail(f"no prefix of {known} observations explains the cache")
            theta, *_ = direct(PRIOR, x[:known, :1], y[:known], np.ones(known))
            assert never.averages(0, t)[0] == pytest.approx(theta[0], rel=1e-12)
            assert never.predict(probe, t)[0][0, 0] == pytest.approx(theta[0], rel=1e-12)
    assert 0 in lags
    assert len(lags) > 10


def test_with_forgetting_the_cache_lags_by_its_stated_share():
    """A lags by at most a sixteenth of new and 2 % of old observations: A⁻¹ within 9 %, settled to 1e-10.

    The mean lags by up to 18 of 290 observations: 0.01 is 3 sds of the prediction, 3·0.06·√(1/290).
    """
    rng = np.random.default_rng(3)
    n, half_life = 1500, 200.0
    x, y = contexts(rng, n, 4), 0.4 + 0.2 * rng.random(n)
    probe = contexts(rng, 1, 4)[0]
    h = heads(d=4, half_life=half_life, slopes="always")
    for t in range(n):
        h.observe(0, x[t], {0: y[t]}, made_at=t, now=t)
        h.refresh(t)
    theta, inverse, _ = direct(PRIOR, x, y, 0.5 ** ((n - 1 - np.arange(n)) / half_life))
    mean, variance, noise = (part[0, 0] for part in h.predict(probe, n - 1))
    assert mean == pytest.approx(theta @ probe, abs=0.01)
    assert variance / noise == pytest.approx(probe @ inverse @ probe, rel=0.09)
    mean, variance, noise = predictions(h, probe, n - 1)
    assert mean == pytest.approx(theta @ probe, rel=1e-10)
    assert variance / noise == pytest.approx(probe @ inverse @ probe, rel=1e-10)


def test_at_any_later_step_the_prediction_is_that_of_the_discounted_observations():
    """Weights are γ^(now − decision step); arrival is late and irregular; agreement to 1e-10."""
    rng = np.random.default_rng(4)
    made = np.sort(rng.integers(0, 500, 60))
    arrived = made + rng.integers(0, 200, 60)
    x, y = contexts(rng, 60, 3), rng.random(60)
    free, slopes = (heads(d=3, half_life=80.0, slopes=kind) for kind in ("never", "always"))
    for i in np.argsort(arrived, kind="stable"):
        for h in (free, slopes):
            h.observe(0, x[i], {0: y[i]}, made_at=int(made[i]), now=int(arrived[i]))
    for now in (700, 760, 1500, 3000, 100_000):
        for h in (free, slopes):
            h.refresh(now)  # at 3,000, 26 nats on, the sums are scaled down
        w = 0.5 ** ((now - made) / 80.0)
        theta, inverse, noise = direct(PRIOR, x[:, :1], y, w)
        np.testing.assert_allclose(predictions(free, x[0], now), [theta[0], noise * inverse[0, 0], noise], rtol=1e-10)
        theta, inverse, noise = direct(PRIOR, x, y, w)
        expected = [theta @ x[0], noise * (x[0] @ inverse @ x[0]), noise]
        np.testing.assert_allclose(predictions(slopes, x[0], now), expected, rtol=1e-10)


def test_forgetting_has_its_stated_fixed_point():
    x = np.array([1.0, -2.0, 0.5])
    h = heads(d=3, half_life=10.0)
    for t in range(700):  # 70 half-lives: 2⁻⁷⁰ of the start is left
        h.refresh(t)
        h.observe(0, x, {0: 1.0}, made_at=t, now=t)
    gamma = 0.5**0.1
    assert h.origin > 0  # the sums were scaled down on the way
    np.testing.assert_allclose(h.gram[0, 0] * gamma ** (699 - h.origin), np.outer(x, x) / (1 - gamma), rtol=1e-12)


@pytest.mark.parametrize("slopes", ["never", "always"])
def test_what_is_no_longer_observed_fades_to_the_prior_its_noise_too(slopes):
    """An arm that was always right must not come back as "0.5 for certain": the spread returns with the mean."""
    h = heads(d=2, half_life=10.0, slopes=slopes)
    for t in range(300):
        h.observe(0, np.array([1.0, 0.5]), {0: 1.0}, made_at=t, now=t)
        h.refresh(t)
    x = np.ones(2)
    assert h.predict(x, 300)[2][0, 0] < 0.05
    h.refresh(1000)
    faded = [part[0, 0] for part in h.predict(x, 1000)]
    np.testing.assert_allclose(faded, predictions(heads(d=2, slopes=slopes), x, 0), rtol=1e-12)


def test_the_noise_of_intercepts_is_looked_at_every_eighth_request():
    h = heads()
    for t in range(9):
        h.observe(0, ONE, {0: 1.0}, made_at=t, now=t)
        h.refresh(t)
    cached = h.predict(ONE, 8)[2][0, 0]
    assert cached == pytest.approx(predictions(h, ONE, 8)[2])


@pytest.mark.parametrize("half_life", [None, 50.0])
def test_the_order_of_arrival_does_not_matter(half_life):
    rng = np.random.default_rng(5)
    x, y, made = contexts(rng, 40, 3), rng.random(40), rng.integers(0, 60, 40)
    states = []
    for order in (range(40), rng.permutation(40), rng.permutation(40)):
        h = heads(d=3, half_life=half_life)
        for k, i in enumerate(order):
            h.observe(0, x[i], {0: y[i]}, made_at=int(made[i]), now=60 + 2 * k)
        states.append(h.state())
    for other in states[1:]:
        for name in ("gram", "moment", "square", "weight", "origin"):
            np.testing.assert_allclose(other[name], states[0][name], rtol=1e-11)


@pytest.mark.parametrize("slopes", ["never", "always"])
def test_a_revision_equals_having_learned_the_value_at_first(slopes):
    rng = np.random.default_rng(6)
    x, y = contexts(rng, 30, 3), rng.random(30)
    revised, right = (heads(d=3, half_life=40.0, slopes=slopes) for _ in range(2))
    for t in range(30):
        revised.observe(0, x[t], {0: 0.0 if t == 11 else y[t]}, made_at=t, now=t)
        right.observe(0, x[t], {0: y[t]}, made_at=t, now=t)
        if t == 20:
            revised.reset(0, 0, 20)
            right.reset(0, 0, 20)
    revised.revise(0, 0, x[11], old=0.0, new=y[11], made_at=11, now=55)
    for now in (55, 90):
        np.testing.assert_allclose(predictions(revised, x[3], now), predictions(right, x[3], now), rtol=1e-10)


def test_a_reset_keeps_a_tenth_of_what_was_decided_before_it():
    h = heads()
    for t in range(10):
        h.observe(0, ONE, {0: 1.0}, made_at=t, now=t)
    h.reset(0, 0, 10)
    np.testing.assert_allclose(h.counts(0, 10), [1.0])
    np.testing.assert_allclose(h.averages(0, 10), [0.5 + 0.5 * 1.0 / 2.0])  # ten halves, a tenth of them, over 1 + 1
    h.observe(0, ONE, {0: 1.0}, made_at=9, now=12)  # decided before the reset: a tenth
    h.observe(0, ONE, {0: 0.0}, made_at=10, now=12)  # decided after it: whole
    np.testing.assert_allclose(h.counts(0, 12), [2.1])
    np.testing.assert_allclose(h.averages(0, 12), [0.5 + (0.5 + 0.05 - 0.5) / 3.1])


def test_it_does_not_matter_whether_an_older_observation_arrives_before_or_after_a_reset():
    before, after = heads(half_life=30.0), heads(half_life=30.0)
    before.observe(0, ONE, {0: 0.9}, made_at=3, now=5)
    for h in (before, after):
        h.reset(0, 0, 8)
        h.reset(0, 0, 20)
    after.observe(0, ONE, {0: 0.9}, made_at=3, now=25)
    np.testing.assert_allclose(predictions(after, ONE, 25), predictions(before, ONE, 25), rtol=1e-12)


def test_a_reset_touches_one_head_of_one_arm():
    h = heads(n_arms=2, priors=(PRIOR, PRIOR))
    for head in range(2):
        for arm in range(2):
            h.observe(arm, ONE, {head: 1.0}, made_at=0, now=0)
    h.reset(1, 0, 1)
    np.testing.assert_allclose([h.counts(0, 1), h.counts(1, 1)], [[1.0, 1.0], [0.1, 1.0]])


def student_log_evidence(prior, x, y):
    """Log marginal likelihood of y: Student t with ν₀ degrees of freedom, scale σ₀²(I + XΛ₀⁻¹Xᵀ) (Murphy 2007)."""
    precision = np.array([prior.intercept_precision] + [prior.slope_precision] * (x.shape[1] - 1))
    shape = prior.noise_sd**2 * (np.eye(len(y)) + (x / precision) @ x.T)
    return multivariate_t(np.full(len(y), prior.mean), shape, df=prior.noise_observations).logpdf(y)


@pytest.mark.parametrize("slope", [0.0, 0.3])
def test_log_evidence_is_the_ratio_of_marginal_likelihoods(slope):
    """All constants cancel: agreement with scipy's multivariate t to 1e-8."""
    rng = np.random.default_rng(7)
    prior = HeadPrior(0.2, noise_sd=0.7, intercept_precision=2.0, slope_precision=20.0, noise_observations=3.0)
    x = contexts(rng, 128, 4)
    y = 0.6 + slope * x[:, 1] + 0.3 * rng.standard_normal(128)
    h = heads(d=4, slopes="auto", priors=(prior,))
    for t in range(128):
        h.observe(0, x[t], {0: y[t]}, made_at=t, now=t)
    h.settle(128)
    expected = student_log_evidence(prior, x, y) - student_log_evidence(prior, x[:, :1], y)
    assert h.log_evidence[0, 0] == pytest.approx(expected, abs=1e-8)


def test_log_evidence_of_aged_data_is_that_of_the_discounted_sums():
    """The same closed form with every observation's exponent w; rebuilt 70 steps after the last observation."""
    rng = np.random.default_rng(8)
    x = contexts(rng, 40, 3)
    y = 0.5 + 0.3 * x[:, 1] + 0.1 * rng.standard_normal(40)
    h = heads(d=3, half_life=60.0, slopes="auto")
    for t in range(40):
        h.observe(0, x[t], {0: y[t]}, made_at=t, now=t)
    h.refresh(110)  # aged by more than 2 %: rebuilt
    w = 0.5 ** ((110 - np.arange(40)) / 60.0)

    def log_evidence(d):
        _, inverse, noise = direct(PRIOR, x[:, :d], y, w)
        total = PRIOR.noise_observations + w.sum()
        prior_log_det = (d - 1) * np.log(PRIOR.slope_precision)
        return 0.5 * (np.linalg.slogdet(inverse)[1] + prior_log_det) - 0.5 * total * np.log(noise * total)

    assert h.log_evidence[0, 0] == pytest.approx(log_evidence(3) - log_evidence(1), abs=1e-9)


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
        h = heads(n_arms=3, d=5, slopes="auto")
        opened += learn(h, 600, lambda _, rng: 0.5 + 0.3 * rng.standard_normal(), seed=seed)
        assert not h.uses_slopes[0]
    assert opened <= 7


def linear(x, rng):
    return 0.5 + 0.3 * x[1] + 0.1 * rng.standard_normal()


def test_a_strong_signal_opens_the_gate_and_predictions_follow_the_context():
    h = heads(n_arms=2, d=5, slopes="auto")
    learn(h, 1000, linear)
    assert h.uses_slopes[0]
    probe = np.array([1.0, 1.0, 0.0, 0.0, 0.0])
    # about 500 observations an arm against a slope prior worth 50: 0.3·500/550 = 0.27, ± 3 noise sds of 0.1/√500
    np.testing.assert_allclose(h.predict(probe, 1000)[0][0], 0.5 + 0.273, atol=0.03)


def test_the_gate_opens_although_the_first_arm_never_answers():
    h = heads(n_arms=2, d=5, slopes="auto")
    learn(h, 1000, linear, arms=[1])
    assert h.uses_slopes[0]


def test_the_gate_shuts_again_when_the_signal_has_been_forgotten():
    h = heads(n_arms=2, d=5, half_life=50.0, slopes="auto")
    learn(h, 600, linear)
    assert h.uses_slopes[0]
    learn(h, 3000, lambda _, rng: 0.5 + 0.3 * rng.standard_normal(), seed=1, start=600)
    assert not h.uses_slopes[0]


def test_a_context_free_head_never_uses_slopes():
    h = heads(n_arms=2, d=5, slopes="never")
    assert not learn(h, 1000, linear)
    ahead, back = (h.predict(np.array([1.0, z, 0, 0, 0]), 1000)[0] for z in (1.0, -1.0))
    np.testing.assert_array_equal(ahead, back)


@pytest.mark.parametrize("slopes", ["never", "auto", "always"])
def test_a_round_trip_through_a_snapshot_predicts_the_same(slopes):
    """Bit by bit as one whose caches were just rebuilt; the one in use lags a little behind its observations."""

    def fresh():
        return heads(n_arms=2, d=4, half_life=300.0, slopes=slopes, priors=(PRIOR, PRIOR))

    h, twin = fresh(), fresh()
    learn(h, 500, linear, d=4)
    h.reset(0, 1, 500)
    twin.load(snapshot.loads(snapshot.dumps({"h": h.state()}))["h"], 500)
    for name, array in h.state().items():
        np.testing.assert_array_equal(twin.state()[name], array)
    x = np.array([1.0, 0.3, -0.2, 0.9])
    for mine, theirs in zip(h.predict(x, 500)[:1], twin.predict(x, 500)[:1], strict=True):
        np.testing.assert_allclose(theirs, mine, atol=0.0 if slopes == "never" else 0.02)
    h.settle(500)
    for mine, theirs in zip(h.predict(x, 510), twin.predict(x, 510), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_states_that_do_not_fit_are_refused_and_change_nothing():
    h = heads(n_arms=2, d=3, half_life=100.0, slopes="always")
    learn(h, 50, linear, d=3)
    h.reset(0, 0, 40)
    before, x = h.state(), np.array([1.0, 0.5, -0.5])
    predicted = [part.copy() for part in h.predict(x, 50)]
    good = heads(n_arms=2, d=3).state()
    wrong = [
        heads(n_arms=3, d=3).state(),
        heads(n_arms=2, d=4).state(),
        heads(n_arms=2, d=3, priors=(PRIOR, PRIOR)).state(),
        {name: array for name, array in good.items() if name != "square"},
        good | {"resets": np.zeros((2, 2), dtype=np.int64)},
        good | {"origin": np.zeros(3)},
        {},
    ]
    for state in wrong:
        with pytest.raises(SnapshotMismatch):
            h.load(state, 50)
    for name, array in h.state().items():
        np.testing.assert_array_equal(array, before[name])
    for mine, theirs in zip(h.predict(x, 50), predicted, strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("half_life", [0.0, -1.0, float("nan")])
def test_a_half_life_must_be_positive(half_life):
    with pytest.raises(InvalidInput, match="half_life_requests"):
        heads(half_life=half_life)


def test_there_must_be_an_arm_and_a_feature():
    for n_arms, d in ((0, 1), (1, 0)):
        with pytest.raises(InvalidInput, match="heads"):
            heads(n_arms=n_arms, d=d)
