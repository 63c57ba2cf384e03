"""Calls by fixed shares and under a canary are as good a log as a policy's own: estimates from them are unbiased."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pytest

from bandit import Arm, Features, Feedback, Pool, Prompt
from bandit.steering import Steer
from evaluation.estimators.doubly_robust import doubly_robust
from evaluation.estimators.inverse_propensity import ips
from evaluation.rounds import Rounds

RUNS, CALLS = 40, 150
MEANS = np.array([[0.9, 0.4, 0.6], [0.2, 0.7, 0.5]])  # by kind of request, of three models
TARGET = np.array([0.2, 0.5, 0.3])
STEERS = (
    Steer(),
    Steer(shares=np.array([50.0, 30.0, 20.0]), mode="weighted"),
    Steer(held=np.array([False, False, True]), mixed=((2, 0.25),), mode="canary"),  # the third model is on trial
)


def mixed_log(rng, features, prompts):
    """A pool that learns from what it draws, whoever set its probabilities: in turn itself, shares, a canary."""
    pool = Pool([Arm(name) for name in "abc"], features=features)
    kinds = rng.integers(0, 2, CALLS)
    behaviour, chosen, value = np.empty((CALLS, 3)), np.empty(CALLS, dtype=np.intp), np.empty(CALLS)
    for t, kind in enumerate(kinds.tolist()):
        decision = pool.decide(prompts[kind], rng, decision_id=str(t), ts=float(t), steer=STEERS[t % 3])
        arm = pool.names.index(decision.chosen)
        assert decision.mode == ("bandit", "weighted", "canary")[t % 3]
        behaviour[t], chosen[t], value[t] = decision.probabilities, arm, float(rng.random() < MEANS[kind, arm])
        pool.advance(decision)
        pool.apply_feedback(decision, Feedback(str(t), float(t), value[t]))
    return kinds, Rounds.of(chosen, behaviour, value, np.tile(TARGET, (CALLS, 1)))


@pytest.mark.parametrize("which", ["ips", "doubly robust"])
def test_shares_and_canaries_leave_estimates_unbiased(which):
    """From 40 logs of 150 calls, z = 4: the mean error is within 4 standard errors, also with a wrong regression.

    A third of the calls each; the truth is the mean of Σ target · mean over the kinds of requests that came.
    """
    rng = np.random.default_rng(20_261_125)
    features = Features(["x", "y"], text=None)
    prompts = [features.extract(Prompt("?", category=name)) for name in "xy"]
    errors = np.empty(RUNS)
    for run in range(RUNS):
        kinds, rounds = mixed_log(rng, features, prompts)
        terms = ips(rounds) if which == "ips" else doubly_robust(rounds.with_predicted(np.full((CALLS, 3), 0.8)))
        errors[run] = terms.estimate - (MEANS @ TARGET)[kinds].mean()
    assert abs(errors.mean()) < 4 * errors.std(ddof=1) / sqrt(RUNS)
