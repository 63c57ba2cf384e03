"""The compiled arithmetic is that of the formulas in plain numpy: within 1e-9, whatever it is given."""

from __future__ import annotations

import numpy as np
import plain_numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bandit import Objective, Price
from bandit import _mixing as mixing
from bandit import _quadrature as quadrature
from bandit._beliefs import Beliefs
from bandit.hierarchy import shared_slopes
from bandit.posterior import HeadPrior, Heads
from bandit.propensity import _STANDARD_NODES, best_arm_probabilities
from bandit.scorer import Scorer

law = settings(max_examples=80, deadline=None, derandomize=True, database=None)
SIZES = [(1, 1), (1, 64), (2, 7), (3, 8), (10, 32), (24, 3), (25, 16), (200, 8), (60, 64)]
PRIORS = (HeadPrior(0.5, noise_sd=0.4), HeadPrior(5.0, noise_sd=1.0), HeadPrior(0.0, noise_sd=0.7))


@st.composite
def arms(draw, most):
    """(means, sds above the numerical width, compliances) of 1 to `most` arms."""
    k = draw(st.integers(1, most))
    mean = draw(arrays(float, k, elements=st.floats(-1e3, 1e3)))
    sd = draw(arrays(float, k, elements=st.floats(1e-3, 1e3)))
    compliance = draw(arrays(float, k, elements=st.sampled_from([1.0, 1.0, 0.0, 0.3, 1e-9])))
    if not compliance.any():
        compliance[0] = 1.0
    return mean, sd, compliance


@given(arms(40))
@law
def test_the_shares_of_few_arms(posterior):
    expected = plain_numpy.few(*posterior, _STANDARD_NODES)
    found = quadrature.few(*posterior, _STANDARD_NODES)
    assert (found is None) == (expected is None)
    if expected is not None:
        np.testing.assert_allclose(found, expected, atol=1e-9)
        np.testing.assert_array_equal(found, best_arm_probabilities(*posterior))


@given(arms(200), arrays(float, 128, elements=st.floats(-1e3, 1e3)))
@law
def test_the_sums_on_given_nodes(posterior, nodes):
    """Two of the nodes stand outside of all mass: where no node has any, there is nothing to normalise."""
    mean, scale, weight = posterior
    nodes = np.sort(np.concatenate([nodes, [(mean - 8 * scale).min(), (mean + 8 * scale).max()]]))
    factor = plain_numpy.below(mean, scale, weight, nodes)
    np.testing.assert_allclose(quadrature.maximum(mean, scale, weight, nodes), factor.prod(axis=0), atol=1e-9)
    expected = plain_numpy.shares(mean, scale, weight, nodes)
    np.testing.assert_allclose(quadrature.shares(mean, scale, weight, nodes), expected, atol=1e-9)


@given(st.data())
@law
def test_beliefs_about_rewards(data):
    k = data.draw(st.integers(1, 200))
    objective = Objective(*data.draw(st.sampled_from([(1, 0, 0), (0, 1, 0), (0, 0, 1), (5, 3, 2), (1, 0, 1)])))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    kinds = [None, Price(0, 0), Price(0, 0, per_call=0.001), Price(1, 2), Price(3, 15, per_call=0.01), Price(1e5, 1e5)]
    prices = [kinds[i] for i in rng.integers(len(kinds), size=k)]
    heads = tuple(rng.uniform(low, high, (3, k)) for low, high in ((-8, 12), (1e-9, 4), (1e-4, 4)))
    input_tokens = data.draw(st.integers(0, 10**6))
    u = Scorer(objective, prices).utilities(heads, input_tokens, np.zeros(k))
    found = np.vstack((u.mean, u.sd, u.quality, u.cost_usd, u.latency_s, u.log_sd))
    np.testing.assert_allclose(
        found, plain_numpy.beliefs(objective, prices, heads, input_tokens), rtol=1e-9, atol=1e-12
    )


def context(rng, d, density):
    x = np.where(rng.random(d) < density, rng.standard_normal(d), 0.0)
    x[0] = 1.0
    return x


@pytest.mark.parametrize(("n_arms", "d"), SIZES)
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_predictions_sums_and_noise(n_arms, d, density):
    """Heads with and without slopes together; contexts with none, some and all of their entries."""
    rng = np.random.default_rng(n_arms * d)
    h = Heads(n_arms, d, PRIORS, half_life_requests=300.0, slopes="auto")
    gram, moment = np.zeros(h.gram.shape), np.zeros(h.moment.shape)
    for t in range(3 * min(n_arms, 40)):
        x, arm, values = context(rng, d, density), int(rng.integers(n_arms)), rng.standard_normal(3)
        h.observe(arm, x, dict(enumerate(values)), made_at=t, now=t)
        weight = 2.0 ** (t / 300.0)
        gram[:, arm] += weight * np.outer(x, x)
        moment[:, arm] += weight * (values - h._center[:, 0])[:, None] * x
    np.testing.assert_allclose(h.gram, gram, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(h.moment, moment, rtol=1e-9, atol=1e-12)
    h.settle(130)
    np.testing.assert_allclose(h._noise[0], plain_numpy.noises(h, h._decay(130)), rtol=1e-9)
    precision = h._decay(130) * h.gram + np.stack([np.diag(row) for row in h._prior_diagonal])[:, None]
    np.testing.assert_allclose(h._inverse @ precision, np.broadcast_to(np.eye(d), h.gram.shape), atol=1e-9)
    np.testing.assert_array_equal(h._inverse, h._inverse.swapaxes(2, 3))
    log_det = np.linalg.slogdet(precision / h._prior_diagonal[:, None, None])[1]
    np.testing.assert_allclose(h._then[2], log_det, rtol=1e-9, atol=1e-9)
    for head, prior in enumerate(PRIORS):
        given_to = h._inverse[head], h._moment_then[head], h._prior_diagonal[head], prior.shared_precision
        slopes, price = shared_slopes(*given_to)
        expected = plain_numpy.shared_slopes(*given_to)
        np.testing.assert_allclose(slopes, expected[0], rtol=1e-9, atol=1e-12)
        assert price == pytest.approx(expected[1], rel=1e-9, abs=1e-9)
    for used in ([False] * 3, [True, False, True], [True] * 3):
        h.uses_slopes[:] = used
        for _ in range(5):
            x = context(rng, d, density)
            expected = plain_numpy.predictions(h, x, h._decay(140))
            for mine, theirs in zip(h.predict(x, 140), expected, strict=True):
                np.testing.assert_allclose(mine, theirs, rtol=1e-9, atol=1e-12)
            for head, arm in ((0, 0), (1, n_arms - 1), (2, n_arms // 2)):
                assert h.expect(head, arm, x, 140) == pytest.approx(expected[0][head, arm], rel=1e-9, abs=1e-12)


@given(arms(60), st.data())
@law
def test_floors_caps_and_probes(posterior, data):
    """As the formulas of `with_floor` and `Filters.shape` say it, on arrays."""
    p, weights, compliance = posterior
    p, weights = np.abs(p) / np.abs(p).sum() if p.any() else np.full(p.size, 1 / p.size), weights / weights.max()
    k, feasible = p.size, compliance > 0
    floor = data.draw(st.floats(0, 0.99))
    capped, refuge, allowed = (data.draw(arrays(bool, k)) for _ in range(3))
    probes = np.where(data.draw(arrays(bool, k)), 0.03, 0.0)
    for w in (None, weights):
        least = feasible * floor / feasible.sum() * (1.0 if w is None else w)
        np.testing.assert_allclose(mixing.floored(p, feasible, floor, w), (1 - least.sum()) * p + least, atol=1e-12)
    for a in (None, allowed):
        given_to = refuge if a is None else refuge & a
        q = p.copy()
        if (p[capped] > 0.1).any() and given_to.any():
            q[capped] = np.minimum(q[capped], 0.1)
            kept = q[given_to].sum()
            q[given_to] += max(0.0, 1 - q.sum()) * (q[given_to] / kept if kept > 0 else 1 / given_to.sum())
        probed = probes if a is None else probes * a
        scale = min(1.0, 0.25 / probed.sum()) if probed.any() else 0.0
        for start, c in ((q, capped), (p, None)):
            expected = start * (1 - probed.sum() * scale) + probed * scale
            np.testing.assert_allclose(mixing.shaped(p, c, refuge, 0.1, probes, 0.25, a), expected, atol=1e-12)


def test_a_draw_is_that_of_the_cumulated_weights():
    rng = np.random.default_rng(8)
    for k in (1, 2, 10, 200):
        p = np.where(rng.random(k) < 0.3, 0.0, rng.random(k))
        p[rng.integers(k)] = 0.5
        for u in (0.0, *rng.random(50), 1 - 2**-53):
            cumulated = p.cumsum()
            assert mixing.drawn(p, u) == min(
                cumulated.searchsorted(u * cumulated[-1], side="right"), np.flatnonzero(p)[-1]
            )
    for p in (np.zeros(3), np.full(3, np.nan)):
        with pytest.raises(ValueError, match="no arm"):
            mixing.drawn(p, 0.5)


def test_arrays_of_another_kind_count_the_same_and_those_of_another_size_are_refused():
    """Inside nothing is checked any more: what is too short would be read beyond its end."""
    h, ok, nodes = Heads(3, 3, PRIORS, slopes="always"), np.array([2.0, 1.0, 3.0]), np.arange(5.0)
    calls = (
        lambda v: quadrature.few(ok, ok, v, _STANDARD_NODES),
        lambda v: quadrature.few(ok, v, ok, _STANDARD_NODES),
        lambda v: quadrature.shares(ok, v, ok, nodes),
        lambda v: quadrature.maximum(ok, ok, v, nodes),
        lambda v: mixing.tempered(ok, v, 1.0, 0.5),
        lambda v: mixing.floored(ok, np.ones(3, dtype=bool), 0.1, v),
        lambda v: h.predict(v, 0),
        lambda v: h.expect(0, 0, v, 0),
        lambda v: h.observe(0, v, {0: 1.0}, made_at=0, now=0),
    )
    for call in calls:
        expected = call(ok)
        for same in (ok.astype(np.float32), ok.astype(np.int64), np.repeat(ok, 2)[::2]):
            np.testing.assert_array_equal(np.array(call(same)), np.array(expected))
        for wrong in (np.ones(2), np.ones(4)):
            with pytest.raises(ValueError, match="needs 3 numbers"):
                call(wrong)
    with pytest.raises(ValueError, match="truth values"):
        mixing.floored(ok, np.ones(4, dtype=bool), 0.1, None)
    beliefs = Beliefs(Objective().weights, 1.0, 1.0, np.ones((4, 3)))
    with pytest.raises(ValueError, match="needs 9 numbers"):
        beliefs.of(np.ones((3, 3)), np.ones((3, 3)), np.ones((3, 4)), 1.0)
    for head, arm in ((-1, 0), (3, 0), (0, -1), (0, 3)):
        with pytest.raises(IndexError):
            h.expect(head, arm, ok, 0)
