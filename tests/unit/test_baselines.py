"""The policies' probabilities by hand."""

from __future__ import annotations

from math import e, log, sqrt

import numpy as np
import pytest
from scipy.stats import norm

from bandit import UCB1, EpsilonGreedy, Fixed, RoundRobin, Thompson, Uniform
from bandit.errors import InvalidInput
from bandit.scorer import Utilities

MEAN = np.array([0.3, 0.9, 0.6, 0.5])
OPEN = np.ones(4)
WITHOUT_BEST = np.array([1.0, 0.0, 0.4, 1e-6])


def beliefs(mean=MEAN, sd=None, count=None):
    mean = np.asarray(mean, float)
    sd = np.full(mean.shape, 0.1) if sd is None else np.asarray(sd, float)
    count = np.ones(mean.shape) if count is None else np.asarray(count, float)
    return Utilities(mean=mean, sd=sd, quality=mean, cost_usd=mean, latency_s=mean, count=count)


@pytest.mark.parametrize(
    ("policy", "compliance", "step", "expected"),
    [
        (Uniform(), OPEN, 0, [0.25, 0.25, 0.25, 0.25]),
        (Uniform(), WITHOUT_BEST, 0, [1 / 3, 0, 1 / 3, 1 / 3]),
        (Fixed(3), OPEN, 0, [0, 0, 0, 1]),
        (Fixed(1), WITHOUT_BEST, 0, [0, 0, 1, 0]),  # the best of the rest
        (RoundRobin(), OPEN, 6, [0, 0, 1, 0]),
        (RoundRobin(), WITHOUT_BEST, 4, [0, 0, 1, 0]),  # 4 mod 3 = 1: the second of arms 0, 2, 3
        (EpsilonGreedy(0.2), OPEN, 0, [0.05, 0.85, 0.05, 0.05]),
        (EpsilonGreedy(0.3), WITHOUT_BEST, 0, [0.1, 0, 0.8, 0.1]),
        (EpsilonGreedy(0.0), OPEN, 0, [0, 1, 0, 0]),
        (UCB1(), OPEN, 100, [0, 1, 0, 0]),  # equal counts: the largest mean
        (UCB1(), WITHOUT_BEST, 100, [0, 0, 1, 0]),
    ],
)
def test_probabilities_by_hand(policy, compliance, step, expected):
    np.testing.assert_allclose(policy.probabilities(beliefs(), compliance, step), expected)


def test_round_robin_visits_every_arm_equally():
    total = sum(RoundRobin().probabilities(beliefs(), OPEN, step) for step in range(40))
    np.testing.assert_array_equal(total, 10)


def test_ucb1_takes_arms_without_feedback_first_then_weighs_counts():
    """At t = e² the bonus is √(4/n): 0.5 + √(4/16) = 1.0 against 0.9 + √(4/400) = 1.0 ± a hair."""
    assert UCB1().probabilities(beliefs(count=[9, 9, 0, 9]), OPEN, 50)[2] == 1.0
    t = round(e**2)
    for n, winner in ((15, 0), (17, 1)):
        bonus = sqrt(2 * log(t) / n)
        assert (0.5 + bonus > 0.9 + sqrt(2 * log(t) / 400)) == (winner == 0)
        p = UCB1().probabilities(beliefs([0.5, 0.9], count=[n, 400]), np.ones(2), t)
        assert p[winner] == 1.0


def test_thompson_mixes_the_floor_into_the_best_arm_probabilities():
    best = norm.cdf(0.1 / (0.1 * sqrt(2)))
    p = Thompson(exploration_floor=0.2).probabilities(beliefs([0.6, 0.5]), np.ones(2), 0)
    np.testing.assert_allclose(p, [0.8 * best + 0.1, 0.8 * (1 - best) + 0.1], atol=1e-3)


def test_thompson_gives_filtered_arms_nothing_and_the_others_at_least_the_floor():
    p = Thompson(exploration_floor=0.03).probabilities(beliefs(sd=[1e-6] * 4), WITHOUT_BEST, 0)
    assert p[1] == 0.0
    assert p[[0, 3]] == pytest.approx([0.01, 0.01], abs=1e-4) or (p[[0, 3]] >= 0.01).all()
    assert p.sum() == pytest.approx(1.0)


def test_thompson_samples_compliance_too():
    """Two equal arms, one surely and one half surely compliant: 1·½ + ½·… = 0.75 and 0.25."""
    p = Thompson(exploration_floor=0.0).probabilities(beliefs([0.5, 0.5]), np.array([1.0, 0.5]), 0)
    np.testing.assert_allclose(p, [0.75, 0.25], atol=1e-3)


def test_versions_name_the_law_and_its_parameters():
    policies = [
        Uniform(),
        Fixed(0),
        Fixed(1),
        RoundRobin(),
        EpsilonGreedy(0.1),
        EpsilonGreedy(0.2),
        UCB1(),
        Thompson(),
        Thompson(contextual=False),
        Thompson(exploration_floor=0.5),
    ]
    assert len({p.version for p in policies}) == len(policies)
    assert [p.slopes for p in policies] == ["never"] * 7 + ["auto", "never", "auto"]


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_refused(value):
    for make in (EpsilonGreedy, Thompson):
        with pytest.raises(InvalidInput, match="policy"):
            make(value)
