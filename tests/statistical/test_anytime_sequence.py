"""The confidence sequence holds at every time with its stated probability, also on logs that a learner made."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from evaluation.intervals import AnytimeSequence
from evaluation.rounds import Rounds

RUNS, CALLS, ALPHA = 200, 300, 0.2


def adaptive_log(rng, means, n):
    """ε-greedy with ε = 0.2 by the means so far: propensities depend on everything before."""
    k = len(means)
    counts, sums = np.zeros(k), np.zeros(k)
    behaviour, chosen, value, predicted = np.empty((n, k)), np.empty(n, dtype=int), np.empty(n), np.empty((n, k))
    for t in range(n):
        average = np.where(counts > 0, sums / np.maximum(counts, 1), 0.5)
        p = np.full(k, 0.2 / k)
        p[average.argmax()] += 0.8
        arm = int(rng.choice(k, p=p))
        reward = float(rng.random() < means[arm])
        behaviour[t], chosen[t], value[t], predicted[t] = p, arm, reward, average
        counts[arm] += 1
        sums[arm] += reward
    return behaviour, chosen, value, predicted


@pytest.mark.parametrize("doubly_robust", [False, True])
def test_it_misses_at_any_time_in_at_most_alpha_of_adaptively_collected_logs(doubly_robust):
    """200 logs of 300 calls, looked at after each. Misses are binomial: at most α·n + 3·√(α(1 − α)n) = 56 of 200."""
    rng = np.random.default_rng(20_261_125)
    means, target = np.array([0.3, 0.5, 0.8]), np.array([0.5, 0.3, 0.2])
    truth = float(means @ target)
    missed = 0
    for _ in range(RUNS):
        behaviour, chosen, value, predicted = adaptive_log(rng, means, CALLS)
        rounds = Rounds.of(chosen, behaviour, value, np.tile(target, (CALLS, 1)))
        sequence = AnytimeSequence(alpha=ALPHA)
        sums, variances = sequence.add(rounds.with_predicted(predicted) if doubly_robust else rounds)
        low, high = sequence.bounds_at(sums, variances, np.arange(1.0, CALLS + 1))
        missed += bool(((truth < low) | (truth > high)).any())
    assert missed <= ALPHA * RUNS + 3 * sqrt(ALPHA * (1 - ALPHA) * RUNS)


def test_it_narrows_around_the_truth():
    rng = np.random.default_rng(3)
    means, target = np.array([0.3, 0.5, 0.8]), np.array([0.5, 0.3, 0.2])
    behaviour, chosen, value, predicted = adaptive_log(rng, means, 20_000)
    sequence = AnytimeSequence()
    sequence.add(Rounds.of(chosen, behaviour, value, np.tile(target, (20_000, 1)), predicted=predicted))
    interval = sequence.interval()
    assert interval.high - interval.low < 0.15
    assert float(means @ target) in interval
