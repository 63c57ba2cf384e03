"""The logistic quality head against scipy's optimiser, numerical integration and hand arithmetic."""

from __future__ import annotations

from math import log, pi, sqrt

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.optimize import brentq, minimize
from scipy.special import expit
from scipy.stats import norm

from bandit.errors import InvalidInput, SnapshotMismatch
from bandit.logistic import LogisticHead, _laplace
from bandit.snapshot import dumps, loads

SETTINGS = {"slope_precision": 8.0, "intercept_precision": 2.0, "half_life_requests": 40.0, "slopes": "always"}


def some_data(seed, n, dimension, *, fractions=False):
    """Contexts as the pool makes them (float32, 1 first) and answers that depend on them."""
    rng = np.random.default_rng(seed)
    x = np.column_stack([np.ones(n), rng.normal(size=(n, dimension - 1))]).astype(np.float32).astype(np.float64)
    chance = expit(x @ rng.normal(size=dimension))
    return x, chance.round(2) if fractions else (rng.random(n) < chance).astype(float)


def learned(x, y, order=None, *, arm=0, n_arms=1, now=None, **settings):
    head = LogisticHead(n_arms, x.shape[1], **{**SETTINGS, **settings})
    now = len(y) if now is None else now
    for i in range(len(y)) if order is None else order:
        head.observe(arm, x[i], y[i], made_at=i, now=now)
    head.settle(now)
    return head


def assert_same_beliefs(head, other, now):
    for x in np.random.default_rng(9).normal(size=(5, head.dimension)):
        for mine, theirs in zip(head.predict(x, now), other.predict(x, now), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-7)


def negative_log_posterior(theta, x, data, prior):
    (y, weights), (prior_mode, prior) = data, prior
    p = expit(x @ theta)
    likelihood = weights * (y * np.log(p) + (1 - y) * np.log(1 - p))
    return 0.5 * prior @ (theta - prior_mode) ** 2 - likelihood.sum()


# --- the posterior


@pytest.mark.parametrize("fractions", [False, True])
@pytest.mark.parametrize("half_life", [None, 30.0])
@pytest.mark.parametrize("prior_mean", [0.5, 0.8])
def test_the_mode_is_where_scipy_finds_it(fractions, half_life, prior_mean):
    """The minimum of the penalised cross-entropy, with γ^(now − t) for weights; the covariance is its inverse Hessian.

    One observation at the prior mean m carries the information m(1 − m): the unit of both precisions.
    """
    x, y = some_data(0, 60, 4, fractions=fractions)
    y = y.astype(np.float32).astype(np.float64)
    head = learned(x, y, now=70, half_life_requests=half_life, prior_mean=prior_mean)
    weights = np.ones(60) if half_life is None else 0.5 ** ((70 - np.arange(60)) / half_life)
    prior = prior_mean * (1 - prior_mean) * np.array([2.0, 8.0, 8.0, 8.0])
    prior_mode = np.array([log(prior_mean / (1 - prior_mean)), 0, 0, 0])
    arguments = (x, (y, weights), (prior_mode, prior))
    found = minimize(negative_log_posterior, np.zeros(4), args=arguments, method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(head._mode[0], found.x, atol=1e-6)
    p = expit(x @ found.x)
    hessian = np.diag(prior) + (x.T * (weights * p * (1 - p))) @ x
    np.testing.assert_allclose(head._covariance[0], np.linalg.inv(hessian), rtol=1e-5, atol=1e-8)


def test_one_observation_by_hand():
    """Intercept only, prior N(0, 4) as precision 1 is worth m(1 − m) = ¼: the mode solves θ/4 = 1 − σ(θ)."""
    head = learned(np.ones((1, 1)), [1.0], intercept_precision=1.0, half_life_requests=None, slopes="never")
    theta = brentq(lambda t: t / 4 + expit(t) - 1, 0, 4)
    variance = 1 / (1 / 4 + expit(theta) * (1 - expit(theta)))
    kappa = 1 / sqrt(1 + pi * variance / 8)
    mean = expit(kappa * theta)
    got = head.predict(np.ones(1), 1)
    assert got[0] == pytest.approx([mean], rel=1e-9)
    assert got[1] == pytest.approx([(kappa * mean * (1 - mean)) ** 2 * variance], rel=1e-9)


def test_before_anything_is_learned_the_prior_mean_is_predicted():
    """κμ = κ·logit(0.8) is drawn towards ½ by the prior's own width; with a narrow prior it is 0.8."""
    narrow = LogisticHead(3, 2, intercept_precision=1e6, prior_mean=0.8)
    mean, variance = narrow.predict(np.array([1.0, 5.0]), 0)
    np.testing.assert_allclose(mean, 0.8, atol=1e-4)
    assert (variance < 1e-5).all()
    mean, variance = LogisticHead(3, 2).predict(np.array([1.0, 5.0]), 0)
    np.testing.assert_allclose(mean, 0.5)
    assert (variance > 0.09).all()


def test_the_predictive_moments_are_near_those_of_a_normal_logit():
    """A prior that is given as N(μ, s²) on the logit, against integration: mean within 0.01, deviation within 0.07."""
    for mu in (-4.0, -2.0, -0.5, 0.0, 1.0, 3.0):
        for sd in (0.1, 0.5, 1.0, 2.0, 3.0):
            m = float(expit(mu))
            head = LogisticHead(1, 1, intercept_precision=1 / (sd * sd * m * (1 - m)), prior_mean=m)
            mean, variance = (float(v[0]) for v in head.predict(np.ones(1), 0))
            density = norm(mu, sd).pdf
            exact = quad(lambda z: expit(z) * density(z), mu - 9 * sd, mu + 9 * sd)[0]  # noqa: B023  used at once
            spread = quad(lambda z: (expit(z) - exact) ** 2 * density(z), mu - 9 * sd, mu + 9 * sd)[0]  # noqa: B023
            assert mean == pytest.approx(exact, abs=0.01)
            assert sqrt(variance) == pytest.approx(sqrt(spread), abs=0.07)


# --- incremental, out of order, revised, forgotten


def test_incremental_equals_batch_in_any_order():
    """Learning one by one, in order or not, and settling equals settling once."""
    x, y = some_data(1, 80, 5)
    head = learned(x, y)
    batch = LogisticHead(1, 5, **SETTINGS)
    batch.load(head.state(), 80)
    shuffled = learned(x, y, np.random.default_rng(2).permutation(80))
    assert_same_beliefs(head, batch, 80)
    assert_same_beliefs(head, shuffled, 80)


def test_scheduled_refits_follow_within_a_sixteenth():
    """Without `settle` beliefs lag by the newest observations only: all of 15 count, and at least 75 of 80."""
    x, y = some_data(1, 80, 5)
    for n in range(1, 81):
        head = LogisticHead(1, 5, **{**SETTINGS, "half_life_requests": None})
        for i in range(n):
            head.observe(0, x[i], y[i], made_at=i, now=i)
        assert head._stale[0] <= n // 16
    before = head.predict(x[0], 80)[0]
    head.settle(80)
    assert before == pytest.approx(head.predict(x[0], 80)[0], abs=0.05)


def test_a_revision_equals_having_learned_the_new_value_at_first():
    x, y = some_data(3, 50, 3, fractions=True)
    first = learned(x, np.where(np.arange(50) % 4 == 0, 1 - y, y))
    revised = learned(x, y)
    for i in range(0, 50, 4):
        revised.revise(0, x[i], old=y[i], new=1 - y[i], made_at=i, now=50)
    revised.settle(50)
    assert_same_beliefs(revised, first, 50)


def test_a_revision_of_what_was_never_seen_or_has_left_changes_nothing():
    x, y = some_data(3, 30, 3)
    head, same = learned(x, y, window=20), learned(x, y, window=20)
    head.revise(0, x[2], old=y[2], new=1 - y[2], made_at=2, now=30)  # left the window of the 20 newest
    head.revise(0, x[25], old=0.5, new=1.0, made_at=25, now=30)  # had another value
    head.revise(0, x[24], old=y[25], new=1 - y[25], made_at=25, now=30)  # had another context
    head.settle(30)
    assert_same_beliefs(head, same, 30)


def test_the_window_holds_the_newest_decisions_whatever_the_order_they_come_in():
    x, y = some_data(4, 60, 3)
    in_order = learned(x, y, window=25)
    backwards = learned(x, y, range(59, -1, -1), window=25)
    shuffled = learned(x, y, np.random.default_rng(5).permutation(60), window=25)
    only = learned(x, y, range(35, 60), window=25)
    for head in (in_order, backwards, shuffled):
        assert head.count.tolist() == [25]
        assert_same_beliefs(head, only, 60)


def test_forgetting_fades_to_the_prior():
    """After 60 half-lives an arm's beliefs are as at first, and `refresh` notices without any new observation."""
    x, y = some_data(6, 50, 3)
    head = learned(x, y, arm=1, n_arms=2)
    fresh = LogisticHead(2, 3, **SETTINGS)
    assert abs(head._mode[1]).max() > 0.1
    head.settle(50 + 60 * 40)
    np.testing.assert_allclose(head._mode[1], 0.0, atol=1e-9)
    again = learned(x, y, arm=1, n_arms=2)
    for now in range(50, 50 + 60 * 40):
        again.refresh(now)
    np.testing.assert_allclose(again.predict(x[0], now)[0], fresh.predict(x[0], 0)[0], atol=1e-3)


def test_a_reset_leaves_earlier_decisions_a_tenth_even_if_their_feedback_comes_later():
    """Feedback on decision 30 that comes after the reset at 40 weighs what it would have, had it come before."""
    x, y = some_data(7, 60, 3)
    head = LogisticHead(1, 3, **{**SETTINGS, "half_life_requests": None})
    for i in [*range(30), *range(31, 40)]:
        head.observe(0, x[i], y[i], made_at=i, now=40)
    head.reset(0, 40)
    for i in [30, *range(40, 60)]:
        head.observe(0, x[i], y[i], made_at=i, now=60)
    head.settle(60)
    weights = np.where(np.arange(60) < 40, 0.1, 1.0)
    arguments = (x, (y, weights), (np.zeros(3), 0.25 * np.array([2.0, 8.0, 8.0])))
    found = minimize(negative_log_posterior, np.zeros(3), args=arguments, method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(head._mode[0], found.x, atol=1e-6)


# --- many at once, weaker, newcomers


def test_absorbing_many_equals_learning_them_one_by_one():
    """All made at one step; two halves weigh as much as a whole."""
    x, y = some_data(13, 40, 3)
    one_by_one = LogisticHead(2, 3, **SETTINGS)
    for row, value in zip(x, y, strict=True):
        one_by_one.observe(1, row, value, made_at=5, now=9)
    one_by_one.settle(9)
    whole, halves = LogisticHead(2, 3, **SETTINGS), LogisticHead(2, 3, **SETTINGS)
    whole.absorb(1, x, y, 1.0, 5)
    for _ in range(2):
        halves.absorb(1, x, y, 0.5, 5)
    for head in (whole, halves):
        head.settle(9)
        np.testing.assert_allclose(head.counts(9), [0, 40 * 0.5 ** (4 / 40)])
        assert_same_beliefs(head, one_by_one, 9)


def test_more_than_a_window_absorbed_keeps_the_last():
    x, y = some_data(13, 40, 3)
    head, last = LogisticHead(1, 3, window=15, **SETTINGS), LogisticHead(1, 3, **SETTINGS)
    head.absorb(0, x, y, 1.0, 5)
    last.absorb(0, x[-15:], y[-15:], 1.0, 5)
    assert_same_beliefs(head, last, 5)


def test_weakened_evidence_counts_for_what_was_said_and_weaker_evidence_stays():
    """40 observations down to 10: as if each had weighed a quarter. 4 stay 4."""
    x, y = some_data(14, 44, 3)
    head, expected = LogisticHead(2, 3, **SETTINGS), LogisticHead(2, 3, **SETTINGS)
    head.absorb(0, x[:40], y[:40], 1.0, 0)
    expected.absorb(0, x[:40], y[:40], 0.25, 0)
    for one in (head, expected):
        one.absorb(1, x[40:], y[40:], 1.0, 0)
    head.weaken(10.0, 0)
    np.testing.assert_allclose(head.counts(0), [10, 4])
    assert_same_beliefs(head, expected, 0)


def test_a_newcomer_starts_from_the_mean_of_the_others_or_from_its_benchmarks():
    """Others at about 0.9 and 0.5 of 100: 0.7, which two observations hold against a prior of a tenth of one."""
    head = LogisticHead(3, 2, intercept_precision=0.1)
    context = np.array([1.0, 0.3])
    head.introduce(2, 0)  # knows of no one: stays at the prior
    assert head.predict(context, 0)[0].tolist() == [0.5, 0.5, 0.5]
    for arm, mean in ((0, 0.9), (1, 0.5)):
        head.absorb(arm, np.tile(context, (100, 1)), np.full(100, mean), 1.0, 0)
    head.introduce(2, 0)
    assert expit(head._intercept[2]) == pytest.approx(0.7, abs=0.02)
    wide, narrow = head.predict(context, 0)[1][[2, 0]]
    assert wide > 10 * narrow
    head.introduce(2, 0, quality=0.2, samples=1000.0)
    assert head.predict(context, 0)[0][2] == pytest.approx(0.2, abs=0.01)


# --- whether slopes are used


def test_slopes_are_used_once_the_evidence_for_them_is_there():
    """Answers that follow the context open the gate, answers that do not keep it shut; never and always are kept."""
    x, y = some_data(8, 400, 3)
    settings = {"slope_precision": 50.0, "half_life_requests": None}
    assert learned(x, y, slopes="auto", **settings).uses_slopes
    noise = (np.random.default_rng(8).random(400) < 0.7).astype(float)
    shut = learned(x, noise, slopes="auto", **settings)
    assert not shut.uses_slopes
    assert not learned(x, y, slopes="never", **settings).uses_slopes
    np.testing.assert_allclose(shut.predict(x[0], 400)[0], noise.mean(), atol=0.01)  # 400 answers against a prior of 2


def test_the_evidence_is_that_of_the_integral():
    """Two features, so that the evidence of both models can be integrated numerically; Laplace is within 0.1 nats."""
    x, y = some_data(10, 40, 2)
    head = learned(x, y, half_life_requests=None)
    prior = 0.25 * np.array([2.0, 8.0])

    grid = np.linspace(-6, 6, 601)
    intercept, slope = np.meshgrid(grid, grid, indexing="ij")

    def log_likelihood(theta_0, theta_1):
        p = expit(theta_0 + theta_1 * x[:, 1].reshape(-1, *[1] * np.ndim(theta_0)))
        return (np.log(np.where(y.reshape(-1, *[1] * np.ndim(theta_0)) == 1, p, 1 - p))).sum(axis=0)

    prior_0, prior_1 = (norm(0, 1 / sqrt(p)).pdf for p in prior)
    both = (np.exp(log_likelihood(intercept, slope)) * prior_0(intercept) * prior_1(slope)).sum() * (grid[1] - grid[0])
    alone = (np.exp(log_likelihood(grid, 0.0 * grid)) * prior_0(grid)).sum()
    assert head.log_evidence[0] == pytest.approx(log(both / alone), abs=0.1)


# --- state


def test_state_round_trips_through_bytes():
    x, y = some_data(11, 60, 4)
    head = learned(x, y, arm=1, n_arms=3)
    head.observe(0, x[0], 1.0, made_at=60, now=61)
    head.reset(1, 55)
    head.settle(61)
    loaded = LogisticHead(3, 4, **SETTINGS)
    loaded.load(loads(dumps(head.state())), 61)
    assert_same_beliefs(head, loaded, 61)
    for name, array in head.state().items():
        np.testing.assert_array_equal(loaded.state()[name], array)
    loaded.observe(1, x[1], 1.0, made_at=61, now=62)  # what was loaded has room again
    assert loaded.count.tolist() == [1, 61, 0]


def test_a_shorter_window_keeps_the_newest_of_a_loaded_state():
    x, y = some_data(11, 60, 4)
    loaded = LogisticHead(1, 4, window=20, **SETTINGS)
    loaded.load(learned(x, y).state(), 60)
    assert_same_beliefs(loaded, learned(x, y, range(40, 60)), 60)


def test_arms_can_be_added_removed_and_reordered():
    x, y = some_data(12, 60, 4)
    head = LogisticHead(3, 4, **SETTINGS)
    for i in range(60):
        head.observe(i % 3, x[i], y[i], made_at=i, now=60)
    head.reset(2, 30)
    head.settle(60)
    other = LogisticHead(3, 4, **SETTINGS)
    other.load(LogisticHead.rearranged(head.state(), [2, None, 0]), 60)
    assert other.count.tolist() == [20, 0, 20]
    assert other.resets == {0: [30]}
    for before, after in zip(head.predict(x[0], 60), other.predict(x[0], 60), strict=True):
        np.testing.assert_allclose(after[[0, 2]], before[[2, 0]], rtol=1e-7)
    assert other.predict(x[0], 60)[0][1] == 0.5


def test_a_state_of_another_shape_is_refused_and_changes_nothing():
    head = LogisticHead(3, 4)
    head.observe(0, np.ones(4), 1.0, made_at=0, now=0)
    good = head.state()
    more_arms, more_features = LogisticHead(4, 4).state(), LogisticHead(3, 5).state()
    without_y = {name: array for name, array in good.items() if name != "y"}
    fewer_rows = good | {"x": np.zeros((0, 4))}
    for state in (more_arms, more_features, without_y, fewer_rows):
        with pytest.raises(SnapshotMismatch, match="3 arms, d=4"):
            head.load(state, 0)
        assert head.count.tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"window": 0},
        {"half_life_requests": 0.0},
        {"prior_mean": 1.0},
        {"slope_precision": 0.0},
        {"intercept_precision": float("nan")},
    ],
)
def test_parameters_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidInput):
        LogisticHead(2, 3, **wrong)


def test_the_mode_is_found_from_any_start():
    """300 small, often separable data sets from starts far off, where Newton's plain step fails on every third."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        n = int(rng.integers(2, 12))
        x = np.column_stack([np.ones(n), rng.normal(size=n) * 10 ** rng.uniform(-1, 1.5)])
        y, prior = (rng.random(n) < rng.random()).astype(float), 10 ** rng.uniform(-4, 1, size=2)
        start = rng.normal(size=2) * 10 ** rng.uniform(-1, 1)
        mode, precision, _ = _laplace(x, (y, np.ones(n)), (np.zeros(2), prior), start=start, steps=100)
        gradient = x.T @ (expit(x @ mode) - y) + prior * mode
        assert gradient @ np.linalg.solve(precision, gradient) < 1e-12


def test_perfectly_separable_answers_leave_a_finite_but_wide_belief():
    """Saturated answers carry no curvature, so Laplace leaves the belief wide, and its mean well short of 1."""
    x = np.column_stack([np.ones(40), np.linspace(-50, 50, 40)])
    y = (x[:, 1] > 0).astype(float)
    mean, variance = learned(x, y, slope_precision=1e-3, half_life_requests=None).predict(np.array([1.0, 50.0]), 40)
    assert 0.55 < mean[0] < 0.99
    assert 0.0 < variance[0] < 0.16  # the largest there is: (8/π)/16
