"""The heads under logistic Thompson: quality from the logistic regression, everything else as without it."""

from __future__ import annotations

import numpy as np
import pytest

from bandit.errors import SnapshotMismatch
from bandit.logistic import LogisticHead
from bandit.logistic_heads import LogisticHeads, rearranged
from bandit.posterior import LATENCY, QUALITY, TOKENS, HeadPrior, Heads

PRIORS = (
    HeadPrior(0.6, noise_sd=0.4, slope_precision=20.0, intercept_precision=2.0),
    HeadPrior(5.0, noise_sd=1.0),
    HeadPrior(0.7, noise_sd=0.7),
)
X = np.array([1.0, 0.25, -0.5])


def pair(n_arms=2):
    return [make(n_arms, 3, PRIORS, half_life_requests=100.0, slopes="always") for make in (LogisticHeads, Heads)]


def taught(heads, n=40):
    rng = np.random.default_rng(0)
    for t in range(n):
        x = np.array([1.0, *rng.normal(size=2)], dtype=np.float32).astype(np.float64)
        values = {QUALITY: float(rng.random() < 0.7), TOKENS: 4.0 + rng.normal(), LATENCY: rng.normal()}
        heads.observe(t % 2, x, values, made_at=t, now=t)
        heads.refresh(t)
    heads.settle(n)
    return heads


def test_quality_is_the_logistic_heads_and_the_rest_is_unchanged():
    both, linear = (taught(heads) for heads in pair())
    alone = LogisticHead(
        2, 3, slope_precision=20.0, intercept_precision=2.0, half_life_requests=100.0, prior_mean=0.6, slopes="always"
    )
    rng = np.random.default_rng(0)
    for t in range(40):
        x = np.array([1.0, *rng.normal(size=2)], dtype=np.float32).astype(np.float64)
        alone.observe(t % 2, x, float(rng.random() < 0.7), made_at=t, now=t)
        rng.normal(size=2)
    alone.settle(40)
    for got, quality, other in zip(
        both.predict(X, 40)[:2], alone.predict(X, 40), linear.predict(X, 40)[:2], strict=True
    ):
        np.testing.assert_allclose(got[QUALITY], quality, rtol=1e-7)
        np.testing.assert_array_equal(got[1:], other[1:])
        assert (abs(got[QUALITY] - other[QUALITY]) > 1e-6).all()
    np.testing.assert_array_equal(both.averages(QUALITY, 40), linear.averages(QUALITY, 40))
    np.testing.assert_array_equal(both.counts(QUALITY, 40), linear.counts(QUALITY, 40))


def test_what_is_done_to_the_heads_is_done_to_both_parts():
    """Revision, reset, warm start, weakening and a newcomer each move the logistic prediction of quality."""
    heads = taught(LogisticHeads(3, 3, PRIORS, half_life_requests=100.0, slopes="always"))
    x = np.eye(1, 3)[0]
    heads.observe(0, x, {QUALITY: 1.0}, made_at=40, now=40)
    seen = []

    def predicted(arm):
        heads.settle(40)
        seen.append(float(heads.predict(x, 40)[0][QUALITY, arm]))
        return seen[-1]

    first = predicted(0)
    heads.revise(QUALITY, 0, x, old=1.0, new=0.0, made_at=40, now=40)
    assert predicted(0) < first
    heads.absorb(QUALITY, 0, np.tile(x, (50, 1)), np.ones(50), 40)
    absorbed = predicted(0)
    assert absorbed > first
    heads.weaken(5.0, 40)
    assert 0.6 < predicted(0) < absorbed
    heads.reset(QUALITY, 1, 41)
    np.testing.assert_allclose(heads.logistic.counts(40)[1], 0.1 * 5.0)
    assert 0.55 < predicted(2) < 0.6  # the prior, drawn a little towards one half by its width
    heads.introduce(2, 40, quality=0.1, samples=100.0)
    assert predicted(2) == pytest.approx(0.1, abs=0.03)
    before = heads.logistic.state()
    heads.reset(LATENCY, 0, 40)
    heads.revise(TOKENS, 0, x, old=4.0, new=5.0, made_at=40, now=40)
    for name, array in heads.logistic.state().items():
        np.testing.assert_array_equal(array, before[name])


def test_states_round_trip_and_arms_may_be_rearranged():
    heads = taught(pair()[0])
    loaded = pair(3)[0]
    loaded.load(rearranged(heads.state(), [1, None, 0]), 40)
    before, after, unlearned = (h.predict(X, 40)[:2] for h in (heads, loaded, pair(1)[0]))
    for was, now_is, prior in zip(before, after, unlearned, strict=True):
        np.testing.assert_allclose(now_is[QUALITY, [0, 2]], was[QUALITY, [1, 0]], rtol=1e-7)
        np.testing.assert_allclose(now_is[QUALITY, 1], prior[QUALITY, 0], rtol=1e-7)


def test_the_kind_of_policy_may_change_between_states():
    """From linear heads the logistic part starts at its prior; linear heads pass over a logistic part."""
    both, linear = (taught(heads) for heads in pair())
    new_both, new_linear = pair()
    new_both.load(rearranged(linear.state(), [0, 1]), 40)
    new_linear.load(rearranged(both.state(), [0, 1]), 40)
    np.testing.assert_allclose(new_linear.predict(X, 40)[0], linear.predict(X, 40)[0])
    np.testing.assert_allclose(new_both.predict(X, 40)[0][1:], linear.predict(X, 40)[0][1:])
    np.testing.assert_allclose(new_both.predict(X, 40)[0][QUALITY], pair()[0].predict(X, 0)[0][QUALITY])


@pytest.mark.parametrize("damaged", ["gram", "logistic_y"])
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damaged):
    heads = taught(pair()[0])
    before = heads.predict(X, 40)
    with pytest.raises(SnapshotMismatch):
        heads.load({**heads.state(), damaged: np.zeros(3)}, 40)
    for mine, was in zip(heads.predict(X, 40), before, strict=True):
        np.testing.assert_array_equal(mine, was)
