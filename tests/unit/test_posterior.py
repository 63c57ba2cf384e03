"""The heads against hand arithmetic and a direct solve."""

from __future__ import annotations

import numpy as np
import pytest

from bandit import snapshot
from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.posterior import HeadPrior, Heads

PRIOR = HeadPrior(mean=0.5, noise_sd=0.4)  # precisions: intercept 1, own slopes 50, shared slopes 15; noise worth 8
ONE = np.ones(1)


def heads(n_arms=1, d=1, *, half_life=None, slopes="never", priors=(PRIOR,)):
    return Heads(n_arms, d, priors, half_life_requests=half_life, slopes=slopes)


def contexts(rng, n, d):
    return np.column_stack([np.ones(n), rng.standard_normal((n, d - 1))])


def direct(prior, x, y, w):
    """(θ, A⁻¹, σ²) of one arm's weighted regression by textbook formulas, every observation at once.

    One arm's slopes are its own deviation plus what all arms share: their prior variances add up in θ. A⁻¹ is that of
    the deviation. The prior of σ² is drawn to the residuals of the intercepts by its own weight ν.
    """
    d, nu, total = x.shape[1], prior.noise_observations, prior.noise_observations + w.sum()
    own = np.diag([prior.intercept_precision] + [prior.slope_precision] * (d - 1))
    both = np.diag(
        [prior.intercept_precision] + [1 / (1 / prior.slope_precision + 1 / prior.shared_precision)] * (d - 1)
    )
    r = y - prior.mean
    theta = np.linalg.solve(both + (x.T * w) @ x, x.T @ (w * r))
    rss = np.sum(w * r * r) - theta @ x.T @ (w * r)
    rss_0 = np.sum(w * r * r) - np.sum(w * r) ** 2 / (prior.intercept_precision + w.sum())
    floor = nu * (rss_0 + nu * prior.noise_sd**2) / total
    theta[0] += prior.mean
    return theta, np.linalg.inv(own + (x.T * w) @ x), (floor + rss) / total


def predictions(h, x, now):
    """(mean, its variance, noise) of head 0 and arm 0 from rebuilt caches."""
    h.settle(now)
    return np.array([part[0, 0] for part in h.predict(x, now)])


def test_three_observations_by_hand():
    """1, 1, 0 around the prior 0.5: b = 0.5, A = 4, residual = 0.75 − 0.25/4 = 0.6875.

    The prior of σ², 0.16 worth 8, is itself drawn to the residual: (0.6875 + 8·0.16)/(3 + 8), again worth 8.
    """
    h = heads()
    for t, y in enumerate((1.0, 1.0, 0.0)):
        h.observe(0, ONE, {0: y}, made_at=t, now=t)
    noise = (8 * (0.6875 + 8 * 0.16) / 11 + 0.6875) / 11
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
    """The cached regression is that of all but the last k, k at most a sixteenth and 32; intercepts know them all.

    Its noise may be up to eight requests older still, and is left out here.
    """
    rng = np.random.default_rng(2)
    n = 1000
    x, y = contexts(rng, n, 8), rng.random(n)
    probe = contexts(rng, 1, 8)[0]
    always, never = heads(d=8, slopes="always"), heads(d=8)
    lags = set()
    for t in range(n):
        for h in (always, never):
            h.observe(0, x[t], {0: y[t]}, made_at=t, now=t)
            h.refresh(t)
        if t % 13 == 0 or t > n - 70:
            mean, variance, noise = (part[0, 0] for part in always.predict(probe, t))
            known = t + 1
            for k in range(min(known // 16, 32) + 1):
                theta, inverse, _ = direct(PRIOR, x[: known - k], y[: known - k], np.ones(known - k))
                if np.allclose([mean, variance / noise], [theta @ probe, probe @ inverse @ probe], rtol=1e-9, atol=0.0):
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


def test_an_introduced_arm_by_hand():
    """Arms with (1, 1) and (0): averages 5/6 and 1/4, so it starts at 13/24, sure of it as after a quarter.

    Residuals around the prior ½: 0.5 − 1/3 and 0.25 − 0.25/2. The prior of σ², 0.16 worth 8, is drawn to all of them;
    the newcomer's own are a quarter of the others' mean noise.
    """
    h = heads(n_arms=3)
    for arm, y in ((0, 1.0), (0, 1.0), (1, 0.0)):
        h.observe(arm, ONE, {0: y}, made_at=0, now=0)
    h.settle(0)
    residuals = np.array([1 / 6, 1 / 8])
    pooled = (residuals.sum() + 8 * 0.16) / (3 + 8)
    noise = float(((residuals + 8 * pooled) / (8 + np.array([2, 1]))).mean())
    h.introduce(2, 0)
    own = (residuals.sum() + 0.25 * noise + 8 * 0.16) / (3.25 + 8)
    expected = (0.25 * noise + 8 * own) / 8.25
    np.testing.assert_allclose([part[0, 2] for part in h.predict(ONE, 0)], [13 / 24, expected / 1.25, expected])
    np.testing.assert_allclose(h.counts(0, 0), [2, 1, 0.25])
    h.observe(2, ONE, {0: 1.0}, made_at=0, now=0)
    assert h.averages(0, 0)[2] == pytest.approx((1.25 * 13 / 24 + 1.0) / 2.25)


@pytest.mark.parametrize("slopes", ["never", "always"])
def test_an_introduced_arm_starts_at_the_mean_however_much_has_been_forgotten(slopes):
    h = heads(n_arms=3, d=3, half_life=20.0, slopes=slopes)
    rng = np.random.default_rng(7)
    for t, x in enumerate(contexts(rng, 90, 3)):
        h.observe(t % 2, x, {0: 0.9 - 0.3 * (t % 2)}, made_at=t, now=t)
    h.introduce(2, 90)
    averages = h.averages(0, 90)
    assert averages[2] == pytest.approx(averages[:2].mean())
    assert h.predict(np.array([1.0, 0.0, 0.0]), 90)[0][0, 2] == pytest.approx(averages[2])
    assert h.counts(0, 90)[2] == pytest.approx(0.25)
    h.introduce(2, 90, quality=0.2, samples=12.0)
    assert h.averages(0, 90)[2] == pytest.approx(0.2)
    assert h.counts(0, 90)[2] == pytest.approx(12.25)


def test_an_arm_introduced_among_others_without_answers_keeps_its_prior():
    h = heads(n_arms=2)
    before = h.state()
    h.introduce(1, 5)
    for name, array in h.state().items():
        np.testing.assert_array_equal(array, before[name])


def learn(h, n, d, seed=0):
    """Feed n observations of a linear signal, to any arm."""
    rng = np.random.default_rng(seed)
    for t, x in enumerate(contexts(rng, n, d)):
        y = 0.5 + 0.3 * x[1] + 0.1 * rng.standard_normal()
        h.observe(int(rng.integers(h.n_arms)), x, {0: y}, made_at=t, now=t)
        h.refresh(t)


@pytest.mark.parametrize("slopes", ["never", "auto", "always"])
def test_a_round_trip_through_a_snapshot_predicts_the_same(slopes):
    """Bit by bit as one whose caches were just rebuilt; the one in use lags a little behind its observations."""

    def fresh():
        return heads(n_arms=2, d=4, half_life=300.0, slopes=slopes, priors=(PRIOR, PRIOR))

    h, twin = fresh(), fresh()
    learn(h, 500, 4)
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
    learn(h, 50, 3)
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
