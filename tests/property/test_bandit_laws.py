"""Laws that hold for every input: distributions are distributions, increments equal batches, replays rebuild."""

from __future__ import annotations

import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bandit import (
    UCB1,
    Arm,
    Constraints,
    DriftReset,
    EpsilonGreedy,
    Features,
    Feedback,
    FilterSettings,
    Fixed,
    Objective,
    Outcome,
    Pool,
    Price,
    Prompt,
    RoundRobin,
    Thompson,
    Uniform,
    snapshot,
)
from bandit.evidence import RateTest
from bandit.filters import Filters
from bandit.posterior import HeadPrior, Heads
from bandit.propensity import best_arm_probabilities
from bandit.scorer import Scorer, Utilities, reward

law = settings(max_examples=60, deadline=None, derandomize=True, database=None)
# Utilities are of order one; with the pacer's price on cost they may be thousands below 0.
MEANS = st.floats(-1e4, 1e4)
SDS = st.one_of(st.just(0.0), st.floats(1e-12, 1e3))
COMPLIANCE = st.one_of(st.just(1.0), st.floats(1e-18, 1.0))


@st.composite
def beliefs(draw, *, filtered=False):
    k = draw(st.integers(1, 20))
    mean = draw(arrays(float, k, elements=MEANS))
    sd = draw(arrays(float, k, elements=SDS))
    compliance = draw(arrays(float, k, elements=st.one_of(st.just(0.0), COMPLIANCE) if filtered else COMPLIANCE))
    assume(compliance.any())
    return mean, sd, compliance


def is_distribution(p):
    return bool(np.isfinite(p).all() and (p >= 0).all() and abs(p.sum() - 1) < 1e-9)


@given(beliefs(filtered=True))
@law
def test_best_arm_probabilities_are_a_distribution(posterior):
    mean, sd, compliance = posterior
    assert is_distribution(best_arm_probabilities(mean, sd))
    p = best_arm_probabilities(mean, sd, compliance)
    assert is_distribution(p)
    assert (p[compliance == 0] == 0).all()


@given(beliefs(), st.randoms(use_true_random=False))
@law
def test_best_arm_probabilities_follow_their_arms_when_arms_are_reordered(posterior, random):
    mean, sd, compliance = posterior
    order = list(range(len(mean)))
    random.shuffle(order)
    p = best_arm_probabilities(mean, sd, compliance)
    # the quadrature places its nodes by the order of arms; its stated error is 0.001
    np.testing.assert_allclose(best_arm_probabilities(mean[order], sd[order], compliance[order]), p[order], atol=1e-3)


@given(beliefs(), st.floats(-100, 100), st.floats(0.01, 100))
@law
def test_best_arm_probabilities_depend_on_neither_origin_nor_unit(posterior, shift, scale):
    """Where no arm is so narrow that its width is the stated numerical one, relative to the means."""
    mean, sd, compliance = posterior
    mean, sd = mean / 1e4, np.maximum(sd, 1e-3)
    p = best_arm_probabilities(mean, sd, compliance)
    moved = best_arm_probabilities(shift + scale * mean, scale * sd, compliance)
    np.testing.assert_allclose(moved, p, atol=2e-3)


@given(beliefs(filtered=True), arrays(float, 20, elements=st.floats(0, 1e6)), st.integers(0, 10**9))
@law
def test_every_policy_gives_a_distribution_without_the_filtered_arms(posterior, counts, step):
    mean, sd, compliance = posterior
    k = len(mean)
    utilities = Utilities(mean, sd, mean, mean, mean, np.zeros((2, k)), counts[:k])
    for policy in (
        Uniform(),
        Fixed(step % k),
        RoundRobin(),
        EpsilonGreedy(0.1),
        EpsilonGreedy(1.0),
        UCB1(),
        Thompson(),
        Thompson(exploration_floor=0.0),
        Thompson(exploration_floor=0.9),
    ):
        p = policy.probabilities(utilities, compliance, step)
        assert is_distribution(p), policy
        assert (p[compliance == 0] == 0).all(), policy
        if isinstance(policy, Thompson):
            floor = policy.exploration_floor / np.count_nonzero(compliance)
            assert (p[compliance > 0] >= floor * (1 - 1e-12)).all()


LIMITS = (("p95_latency_s", 0.05), ("min_accuracy", 0.25))
CALLS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 1), st.sampled_from([0.0, 0.0, 1.0, 0.4]), st.integers(1, 60)),
    max_size=25,
)


@given(CALLS, arrays(float, 4, elements=st.floats(0, 1)), st.floats(0.001, 0.2), st.floats(0.01, 1.0))
@law
def test_shares_are_a_distribution_and_a_filtered_arm_has_its_probe_share_only(calls, weights, probe, unknown):
    filters = Filters(4, LIMITS, FilterSettings(probe_share=probe, unknown_share=unknown))
    for arm, limit, bad, times in calls:
        for _ in range(times):
            filters.observe(arm, limit, bad)
    closed = np.array([state == "filtered" for state in filters.states])
    np.testing.assert_array_equal(filters.compliance() == 0, closed)
    p = np.where(closed, 0.0, weights)
    if closed.all() or p.sum() == 0:
        return
    p /= p.sum()
    shaped = filters.shape(p)
    assert is_distribution(shaped)
    assert (shaped[closed] <= min(4 * probe, 0.25) + 1e-12).all()
    assert (shaped[closed] > 0).all()
    assert shaped[closed].sum() <= 0.25 + 1e-12


@given(st.lists(st.floats(0, 1), max_size=200), st.floats(0.01, 0.99))
@law
def test_evidence_knows_counts_only_and_never_proves_both_sides(xs, rate):
    test, backwards = RateTest(rate), RateTest(rate)
    for x in xs:
        test.add(x)
    for x in reversed(xs):
        backwards.add(x)
    sides = [test.log_evidence(side) for side in ("violating", "compliant")]
    np.testing.assert_allclose(sides, [backwards.log_evidence(s) for s in ("violating", "compliant")], atol=1e-6)
    assert min(sides) < np.log(100)
    assert 0 < test.compliance <= 1
    assert test.change >= 0


@st.composite
def histories(draw):
    """(x, y, step decided, step arrived) of up to 40 observations of one arm, in order of arrival."""
    n, d = draw(st.integers(1, 40)), draw(st.integers(1, 6))
    x = draw(arrays(float, (n, d), elements=st.floats(-3, 3, width=32)))
    x[:, 0] = 1.0
    y = draw(arrays(float, n, elements=st.floats(-5, 5, width=32)))
    made = draw(arrays(np.int64, n, elements=st.integers(0, 300)))
    arrived = np.sort(made + draw(arrays(np.int64, n, elements=st.integers(0, 300))))
    return x, y, np.minimum(made, arrived), arrived


@given(histories(), st.sampled_from([None, 3.0, 50.0, 5000.0]))
@law
def test_increments_equal_the_batch(history, half_life):
    """Relative to the numbers' size the sums are exact to rounding; A is no worse conditioned than 40·9·6/1 + 50.

    One arm's slopes have the prior variance of its own deviation plus that of what all arms share.
    """
    x, y, made, arrived = history
    prior = HeadPrior(0.5, noise_sd=0.4)
    d = x.shape[1]
    h = Heads(1, d, (prior,), half_life_requests=half_life, slopes="always")
    for row, value, m, now in zip(x, y, made, arrived, strict=True):
        h.refresh(int(now))
        h.observe(0, row, {0: float(value)}, made_at=int(m), now=int(now))
    now = int(arrived[-1])
    h.settle(now)
    w = np.ones(len(y)) if half_life is None else 0.5 ** ((now - made) / half_life)
    both = np.diag([1.0] + [1 / (1 / prior.slope_precision + 1 / prior.shared_precision)] * (d - 1))
    theta = np.linalg.solve(both + (x.T * w) @ x, x.T @ (w * (y - 0.5)))
    precision = np.diag([1.0] + [prior.slope_precision] * (d - 1)) + (x.T * w) @ x
    mean, variance, noise = (part[0, 0] for part in h.predict(x[0], now))
    assert abs(mean - (0.5 + theta @ x[0])) < 1e-8
    np.testing.assert_allclose(variance / noise, x[0] @ np.linalg.solve(precision, x[0]), rtol=1e-8)
    np.testing.assert_allclose(h.counts(0, now)[0], w.sum(), rtol=1e-10)


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["ok", "ok", "ok", "error", "timeout", "cancelled"]),
        st.sampled_from([None, 0.0, 0.3, 1.0]),  # quality
        st.floats(0.0, 30.0),  # latency
        st.integers(0, 4),  # how many requests later feedback comes
        st.sampled_from(["a", "b", None]),
    ),
    max_size=40,
)


def new_pool():
    return Pool(
        [Arm("small", Price(0.1, 0.4)), Arm("large", Price(2, 8)), Arm("own")],
        objective=Objective(quality=1, cost=0.3, latency=0.2),
        constraints=Constraints(p95_latency_s=5.0, min_accuracy=0.5, accuracy_evidence="feedback"),
        usd_per_request=0.001,
        half_life_requests=30.0,
    )


def late_feedback(waiting, step):
    ready = [item for item in waiting if item[0] <= step]
    waiting[:] = [item for item in waiting if item[0] > step]
    return ready


@given(EVENTS, st.integers(0, 2**32 - 1))
@law
def test_every_decision_is_sound_and_replaying_the_log_rebuilds_the_pool(events, seed):
    rng, pool, log, waiting = np.random.default_rng(seed), new_pool(), [], []
    for i, (status, quality, latency_s, delay, category) in enumerate(events):
        d = pool.decide(Prompt("text", category=category), rng, decision_id=str(i), ts=0.0)
        assert is_distribution(d.probabilities)
        assert d.propensity == d.probabilities[d.arms.index(d.chosen)] > 0
        assert d.infeasible == pool.filters.hopeless  # which all arms filtered are
        if d.infeasible and d.feasible.any():
            assert d.probabilities.max() >= 0.8 * d.probabilities[d.feasible].sum() - 1e-9
        pool.advance(d)
        outcome = Outcome(d.decision_id, 0.0, d.chosen, status, latency_s, output_tokens=10, cost_usd=0.002)
        changes = pool.apply_outcome(d, outcome)
        log += [("outcome", d, outcome), *(("reset", c) for c in changes if isinstance(c, DriftReset))]
        if quality is not None:
            waiting.append((i + delay, d, Feedback(d.decision_id, 0.0, quality)))
        for _, old, feedback in late_feedback(waiting, i):
            changes = pool.apply_feedback(old, feedback)
            log += [("feedback", old, feedback), *(("reset", c) for c in changes if isinstance(c, DriftReset))]
    twin = new_pool()
    for kind, *event in log:
        if kind == "outcome":
            twin.advance(event[0])
            twin.apply_outcome(*event, replay=True)
        elif kind == "feedback":
            twin.apply_feedback(*event, replay=True)
        else:
            twin.apply_reset(twin.names[event[0].arm], event[0].head, event[0].change)
    assert snapshot.dumps(twin.state()) == snapshot.dumps(pool.state())
    third = new_pool()
    third.load(snapshot.loads(snapshot.dumps(pool.state())))
    assert snapshot.dumps(third.state()) == snapshot.dumps(pool.state())


@given(st.text(max_size=300) | st.binary(max_size=200).map(lambda b: b.decode("utf-8", "surrogateescape")), st.text())
@law
def test_features_are_finite_and_the_same_every_time(text, category):
    prompt = Prompt(text, category=category)
    x = FEATURES.extract(prompt).x
    assert x.shape == (32,)
    assert x[0] == 1.0
    assert (np.abs(x) < 5).all()  # a projected unit vector and small facts
    np.testing.assert_array_equal(FEATURES.extract(prompt).x, x)


FEATURES = Features()
MAYBE = st.none() | st.floats(0, 1e6)


@given(st.none() | st.floats(0, 1), MAYBE, MAYBE, st.lists(st.floats(0, 10), min_size=3, max_size=3))
@law
def test_rewards_lie_between_0_and_1(quality, cost_usd, latency_s, weights):
    assume(sum(weights) > 0)
    value = reward(Objective(*weights), quality, cost_usd, latency_s)
    parts = (quality, cost_usd, latency_s)
    if any(part is None and weight > 0 for part, weight in zip(parts, weights, strict=True)):
        assert value is None
    else:
        assert value is not None
        assert -1e-12 <= value <= 1 + 1e-12


@given(
    arrays(float, (3, 5), elements=st.floats(-8, 12)),
    arrays(float, (3, 5), elements=st.floats(1e-9, 4)),
    arrays(float, (3, 5), elements=st.floats(1e-4, 4)),
    st.integers(0, 10**7),
)
@law
def test_utilities_are_finite_whatever_the_heads_believe(mean, variance, noise, input_tokens):
    prices = [None, Price(0, 0), Price(1e-6, 1e-6), Price(3, 15), Price(1e5, 1e5)]
    u = Scorer(Objective(1, 1, 1), prices).utilities((mean, variance, noise), input_tokens, np.zeros(5))
    for part in (u.mean, u.sd, u.quality, u.latency_s, u.cost_usd[1:]):
        assert np.isfinite(part).all()
    assert (u.sd > 0).all()
    assert (u.cost_usd[1:] >= 0).all()
