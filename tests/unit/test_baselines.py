"""The policies' probabilities by hand."""

from __future__ import annotations

from dataclasses import replace
from math import e, log, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from bandit import (
    UCB1,
    BestFeasible,
    EpsilonGreedy,
    Fixed,
    LinUCB,
    LogisticThompson,
    RoundRobin,
    SquareCB,
    Thompson,
    Uniform,
    Weighted,
)
from bandit.baselines import for_other_arms
from bandit.errors import InvalidInput
from bandit.scorer import Utilities

MEAN = np.array([0.3, 0.9, 0.6, 0.5])
OPEN = np.ones(4)
WITHOUT_BEST = np.array([1.0, 0.0, 0.4, 1e-6])


def beliefs(mean=MEAN, sd=None, count=None):
    mean = np.asarray(mean, float)
    sd = np.full(mean.shape, 0.1) if sd is None else np.asarray(sd, float)
    count = np.ones(mean.shape) if count is None else np.asarray(count, float)
    return Utilities(
        mean=mean, sd=sd, quality=mean, cost_usd=mean, latency_s=mean, log_sd=np.zeros((2, mean.size)), count=count
    )


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
        (BestFeasible(0.0), OPEN, 0, [0, 1, 0, 0]),
        (BestFeasible(0.2), OPEN, 0, [0.05, 0.85, 0.05, 0.05]),
        (BestFeasible(0.3), WITHOUT_BEST, 0, [0.1, 0, 0.8, 0.1]),
        (LinUCB(1.0, 0.2), OPEN, 0, [0.05, 0.85, 0.05, 0.05]),  # equal sd: the largest mean
        (LinUCB(1.0, 0.0), WITHOUT_BEST, 0, [0, 0, 1, 0]),
        (Weighted((50, 30, 20, 0)), OPEN, 0, [0.5, 0.3, 0.2, 0]),
        (Weighted((50, 30, 20, 0)), WITHOUT_BEST, 0, [5 / 7, 0, 2 / 7, 0]),
        (Weighted((0, 3, 0, 0)), WITHOUT_BEST, 0, [1 / 3, 0, 1 / 3, 1 / 3]),  # all that is feasible weighs 0
        (SquareCB(10, 0.5, 0.0), OPEN, 0, [0.25] * 4),  # γ = 0
        # γ = 5·√4 = 10, gaps 0.6, 0, 0.3, 0.4: 1/(4 + 6), 1/(4 + 3), 1/(4 + 4), and the rest
        (SquareCB(5, 0.5, 0.0), OPEN, 4, [1 / 10, 1 - 1 / 10 - 1 / 7 - 1 / 8, 1 / 7, 1 / 8]),
        # γ = 10 without arm 1: gaps 0.3, 0, 0.1 below 0.6: 1/(3 + 3), 1/(3 + 1), and the rest
        (SquareCB(10, 0.0, 0.0), WITHOUT_BEST, 4, [1 / 6, 0, 1 - 1 / 6 - 1 / 4, 1 / 4]),
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


@pytest.mark.parametrize("policy", [BestFeasible(0.0), LinUCB(1.0, 0.0), SquareCB(1e9, 0.0, 0.0)])
def test_equally_good_arms_share_equally(policy):
    """Before anything is learned all are equal: a tie that always went to the first arm would starve the others."""
    np.testing.assert_allclose(policy.probabilities(beliefs([0.5, 0.5, 0.2]), np.ones(3), 9), [0.5, 0.5, 0], atol=1e-8)


def test_linucb_weighs_uncertainty_by_alpha():
    """0.5 + α·0.3 passes 0.9 + α·0.1 at α = 2."""
    unsure = beliefs([0.5, 0.9], sd=[0.3, 0.1])
    assert LinUCB(1.9, 0.0).probabilities(unsure, np.ones(2), 0).tolist() == [0, 1]
    assert LinUCB(2.1, 0.0).probabilities(unsure, np.ones(2), 0).tolist() == [1, 0]


def test_linucb_with_alpha_0_is_greedy():
    rng = np.random.default_rng(0)
    for _ in range(100):
        believed = beliefs(rng.normal(size=6), sd=rng.exponential(size=6))
        compliance = np.where(rng.random(6) < 0.7, rng.random(6), 0.0)
        compliance[rng.integers(6)] = 1.0
        greedy = BestFeasible(0.1).probabilities(believed, compliance, 3)
        np.testing.assert_array_equal(LinUCB(0.0, 0.1).probabilities(believed, compliance, 3), greedy)


def test_squarecb_is_inverse_gap_weighting():
    """Foster & Rakhlin (2020), algorithm 1, over random means, numbers of arms and steps."""
    rng = np.random.default_rng(1)
    for _ in range(100):
        n_arms, step = int(rng.integers(2, 20)), int(rng.integers(1, 100_000))
        mean = rng.random(n_arms)
        gamma = 3.0 * step**0.6
        best = int(mean.argmax())
        expected = [1 / (n_arms + gamma * (mean[best] - m)) for m in mean]
        expected[best] += 1 - sum(expected)
        p = SquareCB(3.0, 0.6, 0.0).probabilities(beliefs(mean), np.ones(n_arms), step)
        np.testing.assert_allclose(p, expected, atol=1e-12)
        assert p.sum() == pytest.approx(1.0, abs=1e-12)


def test_logistic_thompson_is_thompson_on_other_beliefs():
    """The law is the same; what differs is where the pool takes its belief about quality from."""
    for compliance in (OPEN, WITHOUT_BEST):
        expected = Thompson(0.2).probabilities(beliefs(), compliance, 0)
        p = LogisticThompson(0.2).probabilities(beliefs(), compliance, 0)
        np.testing.assert_array_equal(p, expected)
    assert LogisticThompson().quality_likelihood == "logistic"
    assert LogisticThompson() == LogisticThompson() != Thompson()


FLOORED = (BestFeasible(0.1), LinUCB(0.5, 0.1), SquareCB(30, 0.5, 0.1), LogisticThompson(0.1), Thompson(0.1))
UNFLOORED = (Weighted((5, 0, 1, 1e-300, 1e6)), Uniform(), Fixed(2), RoundRobin(), EpsilonGreedy(0.1), UCB1())
numbers = st.lists(st.floats(0, 1), min_size=5, max_size=5).map(np.array)


@given(numbers, numbers, numbers.filter(np.any), st.integers(0, 10**9))
def test_probabilities_sum_to_one_and_none_is_given_to_filtered_arms(mean, sd, compliance, step):
    feasible = compliance > 0
    for policy in FLOORED + UNFLOORED:
        p = policy.probabilities(beliefs(mean, sd), compliance, step)
        assert p.shape == (5,)
        assert p.sum() == pytest.approx(1.0, abs=1e-9)
        assert (p[~feasible] == 0).all()
        assert (p >= (0.1 / feasible.sum() - 1e-12 if policy in FLOORED else 0.0))[feasible].all()


@pytest.mark.parametrize("policy", FLOORED)
def test_the_floor_is_spread_as_the_utilities_say(policy):
    """Arm 0 is far behind and has half the weight: 0.1/2·0.5, from the floor alone."""
    believed = replace(beliefs([0.0, 1e6], sd=[1e-9, 1e-9]), floor_weights=np.array([0.5, 1.0]))
    p = policy.probabilities(believed, np.ones(2), 100)
    np.testing.assert_allclose(p, [0.025, 0.975], atol=1e-6)


def test_weights_are_one_for_each_arm():
    with pytest.raises(InvalidInput, match="are 2, for 4 arms"):
        Weighted((90, 10)).probabilities(beliefs(), OPEN, 0)


def test_policies_that_name_arms_follow_them_where_arms_join_and_leave():
    """Arms 2 and 0 stay, in this order, behind a newcomer, which weighs nothing."""
    rows = [None, 2, 0]
    assert for_other_arms(Weighted((50, 30, 20)), rows) == Weighted((0, 20, 50))
    assert for_other_arms(Fixed(2), rows) == Fixed(1)
    assert for_other_arms(LinUCB(2.0), rows) == LinUCB(2.0)
    with pytest.raises(InvalidInput, match="is the arm that leaves"):
        for_other_arms(Fixed(1), rows)
    with pytest.raises(InvalidInput, match="are those of arms that leave"):
        for_other_arms(Weighted((0, 30, 0)), rows)


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
        LinUCB(),
        LinUCB(2.0),
        SquareCB(),
        SquareCB(20),
        SquareCB(10, 0.25),
        LogisticThompson(),
        BestFeasible(),
        BestFeasible(0.0),
        Weighted((1, 2)),
        Weighted((2, 1)),
    ]
    assert len({p.version for p in policies}) == len(policies)
    assert [p.slopes for p in policies] == [
        *["never"] * 7,
        *["auto", "never", "auto"],
        *["auto"] * 8,
        *["never"] * 2,
    ]


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_shares_out_of_range_are_refused(value):
    for make in (EpsilonGreedy, Thompson, LogisticThompson, BestFeasible, LinUCB, SquareCB):
        name = "epsilon" if make is EpsilonGreedy else "exploration_floor"
        with pytest.raises(InvalidInput, match=f"policy.{name}"):
            make(**{name: value})


@pytest.mark.parametrize(
    ("make", "setting"),
    [
        (lambda: LinUCB(-1.0), "alpha"),
        (lambda: LinUCB(float("inf")), "alpha"),
        (lambda: SquareCB(0.0), "gamma_scale"),
        (lambda: SquareCB(1.0, 2.5), "gamma_exponent"),
        (lambda: SquareCB(1.0, float("nan")), "gamma_exponent"),
        (lambda: Weighted(()), "weights"),
        (lambda: Weighted((1.0, -1.0)), "weights"),
        (lambda: Weighted((1.0, float("nan"))), "weights"),
    ],
)
def test_parameters_out_of_range_are_refused(make, setting):
    with pytest.raises(InvalidInput, match=f"policy.{setting}"):
        make()
