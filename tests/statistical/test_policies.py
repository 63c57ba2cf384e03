"""Whether each policy moves traffic to where it belongs, and whether the logistic head finds a known truth."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit

from bandit import (
    Arm,
    BestFeasible,
    Features,
    LinUCB,
    LogisticThompson,
    Pool,
    Prompt,
    SquareCB,
    Thompson,
    Weighted,
)
from bandit.logistic import LogisticHead
from bandit.scorer import Utilities

# With α = 1 LinUCB may stay with one arm: early on "b is bad at x" reads as "x is hard", and it does not look again.
CONTEXTUAL = [LinUCB(2.0), SquareCB(), LogisticThompson(), BestFeasible(0.05)]


@pytest.mark.parametrize("policy", CONTEXTUAL)
@pytest.mark.parametrize("seed", range(3))
def test_each_category_goes_to_its_own_specialist(policy, seed):
    """Specialists are right 0.95 and 0.35: no context-free choice is better than 0.65 on average over both.

    The mean true quality of the second thousand of 2,000 calls is above 0.80 for each of seeds 0 to 2.
    """
    table = {"a": {"x": 0.95, "y": 0.35}, "b": {"x": 0.35, "y": 0.95}}
    rng = np.random.default_rng(seed)
    pool, qualities = Pool([Arm(name) for name in table], policy=policy, features=Features(["x", "y"])), []
    for i in range(2_000):
        category = "xy"[i % 2]
        d = pool.choose(Prompt("hello", category=category), rng)
        chance = table[d.chosen][category]
        pool.update(d, quality=float(rng.random() < chance))
        qualities.append(chance)
    assert np.mean(qualities[1_000:]) > 0.80


def test_weighted_keeps_to_its_percentages_whatever_it_learns():
    """10,000 calls at 90 % to the worse arm: within 4 standard deviations, ±1.2 %."""
    rng = np.random.default_rng(0)
    pool, taken = Pool([Arm("worse"), Arm("better")], policy=Weighted((90, 10))), 0
    for _ in range(10_000):
        d = pool.choose(Prompt(), rng)
        assert d.propensity == pytest.approx(0.9 if d.chosen == "worse" else 0.1)
        pool.update(d, quality=float(d.chosen == "better"))
        taken += d.chosen == "worse"
    assert taken / 10_000 == pytest.approx(0.9, abs=0.012)


def contexts(rng, n, dimension):
    return np.column_stack([np.ones(n), rng.normal(size=(n, dimension - 1))])


@pytest.mark.parametrize("seed", range(3))
def test_the_logistic_head_recovers_a_known_theta(seed):
    """From n = 2,000 answers of σ(θᵀx), d = 4, prior worth 0.1 observations: every coefficient within 4 posterior sd.

    By 12 coefficients over 3 seeds, chance alone leaves them with probability 12 · 6e-5 < 0.1 %. The posterior sd is
    about 1/√(2,000·0.2) = 0.05, so it could not hide a coefficient that is wrong.
    """
    rng = np.random.default_rng(seed)
    theta = np.array([0.4, 1.0, -0.7, 0.0])
    head = LogisticHead(1, 4, slope_precision=0.1, intercept_precision=0.1, slopes="always")
    for t, x in enumerate(contexts(rng, 2_000, 4)):
        head.observe(0, x, float(rng.random() < expit(theta @ x)), made_at=t, now=t)
    head.settle(2_000)
    sd = np.sqrt(np.diag(head._covariance[0]))
    assert (sd < 0.08).all()
    assert (abs(head._mode[0] - theta) < 4 * sd).all()


def test_the_logistic_head_is_calibrated():
    """With θ from the prior, 60 answers, 400 repetitions, the 90 % interval covers the true chance in 85 to 95 %.

    Binomial noise of the share is 1.5 %; the rest is left to the normal approximation.
    """
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        theta = rng.normal(size=3) / np.sqrt(0.25 * np.array([2.0, 4.0, 4.0]))
        head = LogisticHead(1, 3, slope_precision=4.0, intercept_precision=2.0, slopes="always")
        for t, x in enumerate(contexts(rng, 60, 3)):
            head.observe(0, x, float(rng.random() < expit(theta @ x)), made_at=t, now=t)
        head.settle(60)
        x = contexts(rng, 1, 3)[0]
        mean, variance = (float(v[0]) for v in head.predict(x, 60))
        covered += abs(expit(theta @ x) - mean) < 1.645 * np.sqrt(variance)
    assert 0.85 < covered / 400 < 0.95


@pytest.mark.parametrize("seed", range(3))
def test_logistic_thompson_learns_which_arm_suits_which_context(seed):
    """Three arms whose chance is σ(θ_aᵀx) with d = 5, 2,500 calls, feedback 50 calls late, seeds 0 to 2.

    Over the last 1,000 calls it wins at least 85 % of what the oracle wins over the best single arm.
    """
    rng = np.random.default_rng(seed)
    theta = rng.normal(size=(3, 5))
    head, policy = LogisticHead(3, 5, slope_precision=10.0), LogisticThompson(0.01)
    chosen, chances, waiting = [], [], []
    for t, x in enumerate(contexts(rng, 2_500, 5)):
        mean, variance = head.predict(x, t)
        believed = Utilities(mean, np.sqrt(variance), mean, mean, mean, np.zeros((2, 3)), head.count)
        arm = int(rng.choice(3, p=policy.probabilities(believed, np.ones(3), t)))
        chance = expit(theta @ x)
        chosen.append(chance[arm])
        chances.append(chance)
        waiting.append((arm, x, float(rng.random() < chance[arm]), t))
        if t >= 50:
            arm, seen, y, made_at = waiting[t - 50]
            head.observe(arm, seen, y, made_at=made_at, now=t)
        head.refresh(t)
    last = np.array(chances[-1_000:])
    single, oracle = last.mean(axis=0).max(), last.max(axis=1).mean()
    assert np.mean(chosen[-1_000:]) > single + 0.85 * (oracle - single)


def test_logistic_thompson_in_a_pool_is_no_worse_than_thompson_on_right_and_wrong_answers():
    """Two arms right 0.9 and 0.6, 1,000 calls, 4 seeds: means within 0.02 (regret of about 15 calls at 0.3 each)."""
    means = []
    for policy in (LogisticThompson(), Thompson()):
        total = 0.0
        for seed in range(4):
            rng, pool = np.random.default_rng(seed), Pool([Arm("a"), Arm("b")], policy=policy)
            for _ in range(1_000):
                d = pool.choose(Prompt("hello"), rng)
                chance = 0.9 if d.chosen == "a" else 0.6
                pool.update(d, quality=float(rng.random() < chance))
                total += chance
        means.append(total / 4_000)
    assert means[0] == pytest.approx(means[1], abs=0.02)
