"""Figures of a choice of models, worked out by hand on four calls of two models."""

from __future__ import annotations

import numpy as np
import pytest

from bandit import Constraints, Objective
from bandit.scorer import reward
from bandit.types import Context
from evaluation.simulation import Workload
from evaluation.simulation_figures import breaking, figures_of, oracle, rewards

NAN = float("nan")
QUALITY = [[1.0, 0.0, 1.0, 1.0], [0.0, 1.0, 1.0, NAN]]
COST_USD = [[1e-3, 1e-3, 1e-3, 1e-3], [4e-3, 4e-3, 4e-3, 4e-3]]
LATENCY_S = [[1.0, 1.0, 3.0, 1.0], [0.5, 0.5, 0.5, NAN]]
ONE_PART = np.zeros(4, dtype=np.intp)
FREE = Constraints()


def calls():
    one = Context(np.ones(1, dtype=np.float32), "v", 1)
    tokens = np.full((2, 4), 10.0)
    arrays = (np.array(QUALITY), np.array(COST_USD), np.array(LATENCY_S), tokens, tokens)
    return Workload(("a", "b"), (one,), np.zeros(4, dtype=np.intp), *arrays)


def rows(*chosen):
    return np.array(chosen, dtype=np.intp)


def test_a_choice_has_the_means_of_what_it_chose():
    """A, b, b, a: qualities 1, 1, 1, 1; costs 1, 4, 4, 1 in thousandths; latencies 1, 0.5, 0.5, 1."""
    figures = figures_of(calls(), Objective(), FREE, ONE_PART, rows(0, 1, 1, 0))
    assert (figures.quality, figures.usd_per_1000) == (1.0, pytest.approx(2.5))
    assert (figures.p50_latency_s, figures.p95_latency_s) == (0.75, pytest.approx(1.0))
    assert figures.reward == 1.0
    assert np.isnan([figures.slow_share, figures.breaking_share]).all()


def test_what_is_unknown_or_refused_is_left_out():
    """B on the first and last call, the others refused: quality 0 (the last is unknown), cost 4, latency 0.5."""
    figures = figures_of(calls(), Objective(), FREE, ONE_PART, rows(1, -1, -1, 1))
    assert (figures.quality, figures.usd_per_1000, figures.p95_latency_s) == (0.0, pytest.approx(4.0), 0.5)


def test_the_uniform_is_the_mean_over_all_models():
    figures = figures_of(calls(), Objective(), FREE, ONE_PART, None)
    assert figures.quality == pytest.approx(5 / 7)
    assert figures.usd_per_1000 == pytest.approx(2.5)


def test_shares_over_limits():
    """Over 2 s: one of a's four calls, so a breaks "at most 5 %"; b's accuracy is 2/3, so both break 0.7 and 2 s."""
    choice = rows(0, 0, 0, 1)
    slow = figures_of(calls(), Objective(), Constraints(p95_latency_s=2.0), ONE_PART, choice)
    assert (slow.slow_share, slow.breaking_share) == (pytest.approx(1 / 3), 0.75)
    poor = figures_of(calls(), Objective(), Constraints(min_accuracy=0.7), ONE_PART, choice)
    assert np.isnan(poor.slow_share)
    assert poor.breaking_share == 0.25


def test_limits_are_judged_in_each_part_by_itself():
    """A is slow in the second half only, in 1 of 2 calls; b never."""
    breaks = breaking(calls(), Constraints(p95_latency_s=2.0), rows(0, 0, 1, 1))
    assert breaks.tolist() == [[False, False, True, True], [False] * 4]


def test_rewards_of_many_are_those_of_one():
    objective = Objective(quality=1, cost=0.5, latency=0.25, cost_reference_usd=0.003, latency_reference_s=2.0)
    many = rewards(objective, *(np.array(v).ravel() for v in (QUALITY, COST_USD, LATENCY_S)))
    for value, *parts in zip(
        many, *(np.array(v).ravel().tolist() for v in (QUALITY, COST_USD, LATENCY_S)), strict=True
    ):
        one = reward(objective, *(None if np.isnan(part) else part for part in parts))
        assert np.isnan(value) if one is None else value == pytest.approx(one)


def test_the_oracle_takes_each_calls_best_that_keeps_the_limits():
    """By quality alone: a, b, either (the first), a (b is unknown). With 2 s only b is left, where it is known."""
    assert oracle(calls(), Objective(), FREE, ONE_PART).tolist() == [0, 1, 0, 0]
    assert oracle(calls(), Objective(), Constraints(p95_latency_s=2.0), ONE_PART).tolist() == [1, 1, 1, -1]
    both_break = Constraints(p95_latency_s=0.1)
    assert oracle(calls(), Objective(), both_break, ONE_PART).tolist() == [0, 1, 0, 0]
