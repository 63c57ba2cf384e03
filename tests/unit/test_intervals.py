"""Intervals: formulas by hand and by numerical integration, and the sequence part by part."""

from __future__ import annotations

from math import log, sqrt

import numpy as np
import pytest
from scipy.integrate import quad

from evaluation.intervals import (
    ASSUMES,
    AnytimeSequence,
    Interval,
    bootstrap_draws,
    empirical_bernstein,
    mixture_boundary,
)
from evaluation.rounds import Rounds


def test_empirical_bernstein_by_hand():
    """Maurer & Pontil's theorem 4 with δ = 0.05/2 a side, so ln(2/δ) = ln 80."""
    found = empirical_bernstein(0.4, 0.09, 101, 2.0)
    half = sqrt(2 * 0.09 * log(80) / 101) + 7 * 2.0 * log(80) / 300
    assert (found.kind, found.low, found.high) == ("bernstein", pytest.approx(0.4 - half), pytest.approx(0.4 + half))


def test_one_value_says_nothing():
    assert empirical_bernstein(0.4, 0.0, 1, 1.0) == Interval("bernstein", -np.inf, np.inf)


@pytest.mark.parametrize(("variance", "rho"), [(0.0, 3.0), (4.0, 3.0), (50.0, 1.0), (900.0, 8.0)])
def test_the_boundary_is_where_the_mixture_reaches_one_over_alpha(variance, rho):
    """The mixture of exp(λs − (−ln(1 − λ) − λ)v) over the stated density, by numerical integration."""
    alpha = 0.025
    s = float(mixture_boundary(np.array(variance), alpha, rho))

    def density(u):
        return u ** (rho - 1) * np.exp(-rho * u)

    def integrand(u):  # u = 1 − λ
        return np.exp((1 - u) * s + (np.log(u) + (1 - u)) * variance) * density(u)

    peak = min(1.0, (variance + rho - 1) / (s + variance + rho)) if variance + rho > 1 else 0.5
    value = quad(integrand, 0, 1, points=[peak], limit=200)[0] / quad(density, 0, 1)[0]
    assert value == pytest.approx(1 / alpha, rel=1e-6)


def test_the_boundary_grows_with_variance_and_certainty():
    wide = mixture_boundary(np.array([1.0, 10.0, 100.0]), 0.05, 3.0)
    assert (np.diff(wide) > 0).all()
    assert (mixture_boundary(np.array([1.0, 10.0, 100.0]), 0.01, 3.0) > wide).all()


def rounds(n, seed=0, *, predicted=False):
    rng = np.random.default_rng(seed)
    behaviour = rng.dirichlet(np.ones(3), n) * 0.9 + 0.1 / 3
    target = rng.dirichlet(np.ones(3), n)
    chosen = (behaviour.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    value = (rng.random(n) < 0.6).astype(float)
    q = np.full((n, 3), 0.6) if predicted else None
    return Rounds.of(chosen, behaviour, value, target, predicted=q)


def cut(whole, at):
    return Rounds(
        whole.chosen[at],
        whole.behaviour[at],
        whole.value[at],
        whole.target[at],
        whole.predicted[at],
        whole.observed_share,
    )


def test_a_sequence_in_parts_is_the_sequence_of_the_whole():
    whole = rounds(500, predicted=True)
    once, parts = AnytimeSequence(), AnytimeSequence()
    once.add(whole)
    for at in (slice(0, 1), slice(1, 320), slice(320, 500)):
        parts.add(cut(whole, at))
    assert parts.interval().low == pytest.approx(once.interval().low, abs=1e-12)
    assert parts.interval().high == pytest.approx(once.interval().high, abs=1e-12)


def test_every_time_of_a_sequence_is_what_it_would_say_if_it_ended_there():
    whole = rounds(60)
    sequence = AnytimeSequence()
    sums, variances = sequence.add(whole)
    low, high = sequence.bounds_at(sums, variances, np.arange(1.0, 61.0))
    for n in (1, 7, 60):
        ended = AnytimeSequence()
        ended.add(cut(whole, slice(0, n)))
        assert (low[n - 1], high[n - 1]) == pytest.approx((ended.interval().low, ended.interval().high), abs=1e-12)


def test_a_sequence_of_nothing_knows_nothing():
    assert AnytimeSequence().interval() == Interval("anytime", 0.0, 1.0)


def test_good_predictions_narrow_a_sequence():
    """Every value is what was predicted, so doubly robust terms hardly vary, while weights do."""
    n = 2_000
    whole = rounds(n, seed=2)
    exact = Rounds.of(whole.chosen, whole.behaviour, np.full(n, 0.5), whole.target, predicted=np.full((n, 3), 0.5))
    plain, robust = AnytimeSequence(), AnytimeSequence()
    plain.add(exact.with_predicted(np.zeros((n, 3))))
    robust.add(exact)
    widths = [s.interval().high - s.interval().low for s in (robust, plain)]
    assert widths[0] < 0.7 * widths[1]
    assert 0.5 in robust.interval()


def test_bootstrap_draws_are_resamples():
    draws = bootstrap_draws(40, 7, np.random.default_rng(0))
    assert draws.shape == (7, 40)
    assert draws.sum(axis=1).tolist() == [40.0] * 7
    assert (bootstrap_draws(40, 7, np.random.default_rng(0)) == draws).all()


def test_each_kind_says_what_it_assumes():
    assert set(ASSUMES) == {"bootstrap", "bernstein", "anytime"}
