"""The reward by hand, the limited lognormal by integration, expected utilities by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import lognorm, norm

from bandit import Objective, Price
from bandit.errors import InvalidInput
from bandit.scorer import Scorer, capped_lognormal, reward

# normalised weights 0.5, 0.3, 0.2
OBJECTIVE = Objective(quality=5, cost=3, latency=2, cost_reference_usd=0.01, latency_reference_s=2.0)


@pytest.mark.parametrize(
    ("quality", "cost_usd", "latency_s", "expected"),
    [
        (1.0, 0.0, 0.0, 1.0),
        (0.0, 0.01, 2.0, 0.0),
        (0.8, 0.004, 0.5, 0.4 + 0.3 * 0.6 + 0.2 * 0.75),
        (0.8, 5.0, 0.5, 0.4 + 0.0 + 0.15),  # a cost beyond the reference is capped
        (0.8, 0.004, 99.0, 0.4 + 0.18 + 0.0),
        (None, 0.004, 0.5, None),
        (0.8, None, 0.5, None),
        (0.8, 0.004, None, None),
    ],
)
def test_reward_by_hand(quality, cost_usd, latency_s, expected):
    value = reward(OBJECTIVE, quality, cost_usd, latency_s)
    assert value == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_a_part_without_weight_may_be_missing():
    assert reward(Objective(), 0.7, None, None) == 0.7
    only_latency = Objective(quality=0, latency=1, latency_reference_s=4.0)
    assert reward(only_latency, None, None, 1.0) == 0.75


@pytest.mark.parametrize(
    "fields",
    [
        {"quality": -1.0},
        {"quality": 0.0},
        {"cost": float("nan")},
        {"cost": 1.0, "cost_reference_usd": 0.0},
        {"latency_reference_s": -2.0},
    ],
)
def test_objectives_out_of_range_are_refused(fields):
    with pytest.raises(InvalidInput, match="objective"):
        Objective(**fields)


GRID = [(m, s, cap) for m in (-1.0, 0.3, 5.0) for s in (0.05, 0.8, 2.0) for cap in (0.1, 1.0, 150.0)]


@pytest.mark.parametrize(("m", "s", "cap"), GRID)
def test_capped_lognormal_against_integration_and_its_derivative_against_differences(m, s, cap):
    """E[min(X, cap)] is the integral of P(X > v) over v from 0 to cap; agreement to 1e-7 of the cap."""

    def expected(log_mean):
        # over ln v, where the survival function is smooth
        step = float(np.clip(log_mean, log_mean - 40, np.log(cap)))
        low = min(log_mean - 40 * s, np.log(cap)) - 20
        return quad(
            lambda v: norm.sf((v - log_mean) / s) * np.exp(v), low, np.log(cap), points=[step], limit=500, epsabs=1e-13
        )[0]

    value, slope = capped_lognormal(m, s, np.log(cap), lognorm.mean(s, scale=np.exp(m)))
    assert value == pytest.approx(expected(m), abs=1e-7 * cap)
    h = 1e-4
    difference = (expected(m + h) - expected(m - h)) / (2 * h)
    assert slope == pytest.approx(difference, abs=1e-5 * cap)


def head_moments(rng, k):
    """Rows: quality, log(1 + tokens), log latency."""
    mean = np.array([rng.random(k), rng.uniform(4, 7, k), rng.uniform(-1.5, 1.5, k)])
    variance = rng.uniform(0.001, 0.01, (3, k))
    noise = np.vstack([np.full(k, 0.1), rng.uniform(0.05, 0.8, k), rng.uniform(0.05, 0.8, k)])
    return mean, variance, noise


def test_expected_utilities_are_the_mean_reward_over_lognormal_calls():
    """n=400,000 draws an arm; rewards lie in [0, 1], so 4 standard errors are at most 4·0.5/√n = 0.0032."""
    rng = np.random.default_rng(10)
    k, n, input_tokens = 6, 400_000, 1500
    heads = head_moments(rng, k)
    mean, variance, noise = heads
    prices = [Price(1.0, float(p)) for p in (0.0, 2.0, 5.0, 10.0, 20.0, 60.0)]
    u = Scorer(OBJECTIVE, prices).utilities(heads, input_tokens, np.zeros(k))
    total = np.sqrt(noise + variance)
    for a in range(k):
        tokens = np.exp(mean[1, a] + total[1, a] * rng.standard_normal(n)) - 1
        latency = np.exp(mean[2, a] + total[2, a] * rng.standard_normal(n))
        cost = (input_tokens * prices[a].input_per_million + tokens * prices[a].output_per_million) / 1e6
        simulated = 0.5 * mean[0, a] + np.mean(
            0.3 * (1 - np.minimum(cost / 0.01, 1)) + 0.2 * (1 - np.minimum(latency / 2.0, 1))
        )
        assert u.mean[a] == pytest.approx(simulated, abs=0.0032)
        error = 4 / np.sqrt(n)
        assert u.cost_usd[a] == pytest.approx(cost.mean(), abs=error * cost.std() + 1e-12)
        assert u.latency_s[a] == pytest.approx(latency.mean(), abs=error * latency.std())


def test_the_spread_is_first_order_in_each_heads_own_uncertainty():
    """sd² = Σ (∂r/∂m)²·Var m, with the derivatives taken by differences of the mean."""
    k, h = 4, 1e-5
    heads = head_moments(np.random.default_rng(11), k)
    scorer = Scorer(OBJECTIVE, [Price(0.5, float(p)) for p in (1, 4, 8, 15)])

    def mean_at(shift):
        moved = (heads[0] + shift, heads[1], heads[2])
        return scorer.utilities(moved, 800, np.zeros(k)).mean

    variance = np.zeros(k)
    for row in range(3):
        shift = np.zeros((3, k))
        shift[row] = h
        variance += ((mean_at(shift) - mean_at(-shift)) / (2 * h)) ** 2 * heads[1][row]
    sd = scorer.utilities(heads, 800, np.zeros(k)).sd
    np.testing.assert_allclose(sd, np.sqrt(variance), rtol=1e-5)


def test_a_scorer_keeps_nothing_of_one_request_for_the_next():
    heads = head_moments(np.random.default_rng(13), 2)
    scorer = Scorer(OBJECTIVE, [Price(1.0, 2.0), None])
    first = scorer.utilities(heads, 10, np.zeros(2))
    kept = first.mean.copy(), first.sd.copy()
    scorer.utilities(heads, 100_000, np.zeros(2))
    again = scorer.utilities(heads, 10, np.zeros(2))
    for mean, sd in ((first.mean, first.sd), (again.mean, again.sd)):
        np.testing.assert_array_equal(mean, kept[0])
        np.testing.assert_array_equal(sd, kept[1])


def test_short_answers_by_hand():
    """Three tokens at 100 USD a million and 0.0005 for the input: 0.0008 of the reference 0.01; 0.5 s of 2 s."""
    mean = np.array([[0.8], [np.log(1 + 3)], [np.log(0.5)]])
    certain = np.full((3, 1), 1e-12)
    u = Scorer(OBJECTIVE, [Price(5.0, 100.0)]).utilities((mean, certain, certain), 100, np.zeros(1))
    assert u.mean[0] == pytest.approx(0.5 * 0.8 + 0.3 * 0.92 + 0.2 * 0.75, abs=1e-6)
    assert u.cost_usd[0] == pytest.approx(0.0008, abs=1e-9)


def test_with_quality_alone_the_utility_is_the_quality_head():
    heads = head_moments(np.random.default_rng(12), 3)
    u = Scorer(Objective(), [None] * 3).utilities(heads, 10, np.arange(3.0))
    np.testing.assert_allclose(u.mean, heads[0][0])
    np.testing.assert_allclose(u.sd, np.sqrt(heads[1][0]))
    np.testing.assert_array_equal(u.count, [0, 1, 2])


def test_an_unknown_price_gets_no_credit_and_its_cost_is_nan():
    """The same heads at three prices: unknown, free, and dearer than the reference already for its input."""
    column = np.array([[0.5], [4.0], [0.0]])
    heads = tuple(np.repeat(part, 3, axis=1) for part in (column, np.full((3, 1), 0.01), np.full((3, 1), 0.2)))
    scorer = Scorer(OBJECTIVE, [None, Price(0.0, 0.0), Price(1e6, 1.0)])
    u = scorer.utilities(heads, 1000, np.zeros(3))
    assert np.isnan(u.cost_usd[0])
    assert u.cost_usd[1] == 0.0
    assert u.cost_usd[2] > 1000.0
    assert u.mean[1] - u.mean[0] == pytest.approx(0.3)  # the whole credit for cost
    assert u.mean[2] == pytest.approx(u.mean[0])  # none


def test_quality_is_shown_within_its_range():
    mean = np.array([[-0.2, 1.3], [4.0, 4.0], [0.0, 0.0]])
    u = Scorer(Objective(), [None] * 2).utilities((mean, mean * 0 + 0.1, mean * 0 + 0.1), 0, mean[0])
    np.testing.assert_array_equal(u.quality, [0.0, 1.0])


def test_a_price_by_hand():
    assert Price(0.15, 0.60).cost_usd(2000, 500) == pytest.approx(0.0003 + 0.0003)
    for prices in ((-1.0, 1.0), (1.0, float("nan"))):
        with pytest.raises(InvalidInput, match="price"):
            Price(*prices)
