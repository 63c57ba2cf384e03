"""The pool: what each kind of event teaches, what a price does, and what a decision carries."""

from __future__ import annotations

import json
from dataclasses import replace
from math import exp, log

import numpy as np
import pytest
from small_pools import LIMITED, bits, make, outcome, rng

from bandit import (
    Arm,
    Constraints,
    Decision,
    EpsilonGreedy,
    Feedback,
    Fixed,
    Objective,
    Pool,
    Price,
    Prompt,
    Uniform,
)
from bandit.errors import InvalidInput, UnknownArm
from bandit.posterior import LATENCY, QUALITY, TOKENS


def test_equal_randomness_gives_an_equal_decision():
    pool = make()
    one, two = (pool.decide(Prompt("hi"), rng(5), decision_id="d", ts=1.0) for _ in range(2))
    assert json.dumps(one.to_row(), default=np.ndarray.tolist) == json.dumps(two.to_row(), default=np.ndarray.tolist)


def test_steps_count_routed_requests():
    pool = make()
    assert [pool.choose(Prompt(), rng(i)).step for i in range(3)] == [0, 1, 2]
    d = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    assert pool.step == 3
    pool.advance(d)
    assert pool.step == 4


def counts(pool, arm=0):
    return [round(float(pool.heads.counts(head, pool.step)[arm]), 9) for head in (QUALITY, TOKENS, LATENCY)]


@pytest.mark.parametrize(
    ("status", "http_status", "expected"),
    [
        ("ok", 200, [0, 1, 1]),
        ("error", 500, [1, 0, 0]),
        ("error", 429, [1, 0, 0]),
        ("error", None, [1, 0, 0]),
        ("timeout", None, [1, 0, 0]),
        ("error", 400, [0, 0, 0]),
        ("error", 413, [0, 0, 0]),
        ("cancelled", None, [0, 0, 0]),
    ],
)
def test_what_an_outcome_teaches_each_head(status, http_status, expected):
    pool = make(1, half_life_requests=None)
    d = pool.choose(Prompt(), rng())
    pool.apply_outcome(d, outcome(d, status, http_status=http_status))
    assert counts(pool) == expected
    if status == "ok":
        # the prior is exp(5) − 1 tokens and 2 s; one observation weighs as much as the prior
        assert pool.heads.averages(LATENCY, 1)[0] == pytest.approx((log(2.0) + log(0.5)) / 2)
        assert pool.heads.averages(TOKENS, 1)[0] == pytest.approx((5.0 + log(101)) / 2)
    if expected[0]:
        assert pool.heads.averages(QUALITY, 1)[0] == pytest.approx(0.25)  # 0.5 and one 0


def test_bounds_learn_from_successes_of_the_model_that_served():
    """Twice the expected seconds; a failure says nothing of how long answers take."""
    pool = make(2)
    d = pool.choose(Prompt(), rng())
    usual = float(d.predicted_latency_s[1])
    for status in ("error", "timeout", "cancelled"):
        pool.apply_outcome(d, outcome(d, status, model="m1", latency_s=9.0))
    pool.apply_outcome(d, outcome(d, model="m1", latency_s=2 * usual))
    cost, latency = pool.bounds.state()
    assert cost == [[0.0], [0.0]]
    assert latency == [[0.0], pytest.approx([1.0, log(2)])]


def test_what_nothing_is_known_of_is_bounded_by_its_priors_median():
    """Seconds: 2. Tokens: their mean is e⁶ − 1, and a lognormal with variance 2 has its median at e⁻¹ of its mean."""
    pool = Pool([Arm("a", Price(0, 50)), Arm("b")])
    cost_usd, latency_s = pool.upper_bounds(pool.features.extract(Prompt("x", 10)))
    np.testing.assert_allclose(latency_s, 2.0)
    assert cost_usd[0] == pytest.approx(50e-6 * (exp(6) - 1) / exp(1))
    assert np.isnan(cost_usd[1])


def test_latency_of_zero_is_learned_as_the_shortest_and_not_as_minus_infinity():
    pool = make(1)
    d = pool.choose(Prompt(), rng())
    pool.apply_outcome(d, outcome(d, latency_s=0.0, output_tokens=0))
    assert np.isfinite(pool.heads.averages(LATENCY, 1)[0])


def test_feedback_may_be_for_a_fallback_model():
    pool = make(3, policy=Fixed(0), half_life_requests=None)
    d = pool.choose(Prompt(), rng())
    pool.apply_outcome(d, outcome(d, "error", http_status=503))
    pool.apply_outcome(d, outcome(d, model="m2", attempt=1))
    pool.apply_feedback(d, Feedback(d.decision_id, 0.0, 1.0), model="m2")
    assert [counts(pool, arm) for arm in range(3)] == [[1, 0, 0], [0, 0, 0], [1, 1, 1]]
    np.testing.assert_allclose(pool.heads.averages(QUALITY, 1), [0.25, 0.5, 0.75])


def test_what_was_decided_on_other_features_or_other_models_is_not_learned():
    pool = make()
    before = bits(pool)
    d = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    old = replace(d, context=replace(d.context, version="trigram-0/other"))
    gone = replace(d, chosen="retired")
    for decision in (old, gone):
        assert pool.apply_outcome(decision, outcome(decision)) == []
        assert pool.apply_feedback(decision, Feedback("d", 0.0, 1.0)) == []
    assert pool.apply_feedback(d, Feedback("d", 0.0, None, metrics={"stars": 4.0})) == []  # nothing to learn from
    assert bits(pool) == before


def test_decisions_of_a_smaller_pool_still_teach_their_model():
    small, large = make(2), make(3)
    d = small.choose(Prompt(), rng())
    large.apply_outcome(d, outcome(d, model="m2"))  # not among the decision's arms: no prediction to compare with
    large.apply_outcome(d, outcome(d, model="m1"))
    assert [counts(large, arm)[2] for arm in range(3)] == [0, 1, 1]


def test_a_revision_counts_in_the_posterior_but_not_in_the_limits_evidence():
    pool = make(1, constraints=LIMITED, half_life_requests=None)
    d = pool.choose(Prompt(), rng())
    pool.apply_feedback(d, Feedback(d.decision_id, 0.0, 0.0))
    pool.apply_feedback(d, Feedback(d.decision_id, 0.0, 1.0, revision=1, revises=0.0))
    assert pool.heads.averages(QUALITY, 1)[0] == pytest.approx(0.75)
    accuracy = pool.filters.evidence(0, 2)
    assert (accuracy.calls, accuracy.bad) == (1, 1.0)


def test_after_a_late_revision_the_heads_are_as_if_the_value_had_come_first():
    revised, right = make(2, half_life_requests=50.0), make(2, half_life_requests=50.0)
    for i in range(60):
        for pool in (revised, right):
            d = pool.choose(Prompt(category="ab"[i % 2]), rng(i))
            value = 0.1 if pool is revised and i == 9 else 0.9
            pool.apply_feedback(d, Feedback("d", 0.0, value), model="m1", replay=True)
        if i == 9:
            old = d
    revised.apply_feedback(old, Feedback("d", 1.0, 0.9, revision=1, revises=0.1), model="m1")
    for name, array in right.heads.state().items():
        np.testing.assert_allclose(revised.heads.state()[name], array, rtol=1e-10)


@pytest.mark.parametrize(("source", "expected"), [("benchmarks", 1), ("feedback", 10), ("both", 11)])
def test_accuracy_is_judged_by_the_evidence_the_pool_names(source, expected):
    pool = make(1, constraints=Constraints(min_accuracy=0.7, accuracy_evidence=source))
    pool.apply_benchmark("m0", 1.0)
    for _ in range(10):
        pool.update(pool.choose(Prompt(), rng()), quality=1.0)
    assert pool.filters.evidence(0, 0).calls == expected


def test_names_that_are_not_in_the_pool_are_errors_where_an_operator_gives_them():
    pool = make()
    for call in (lambda: pool.apply_benchmark("m9", 1.0), lambda: pool.set_prices({"m9": Price(1, 1)})):
        with pytest.raises(UnknownArm, match="unknown arm 'm9'; the pool has m0, m1, m2"):
            call()
    assert pool.apply_reset("m9", "quality", 1.0) == []  # a log may hold models that have left


def test_arms_must_have_distinct_names():
    with pytest.raises(InvalidInput, match="arms"):
        Pool([Arm("a"), Arm("a")])


def test_a_new_price_counts_at_the_next_decision():
    """Cost before: (1,000·1 + E[tokens]·2) USD per million; doubling both prices doubles it, learning nothing."""
    pool = make(2)
    d = pool.choose(Prompt(input_tokens=1000), rng())
    learned = pool.heads.state()
    pool.set_prices({"m0": Price(2.0, 4.0)})
    pool.set_prices({"m1": None})  # the other's new price stays
    after = pool.decide(Prompt(input_tokens=1000), rng(), decision_id="d", ts=0.0)
    assert after.predicted_cost_usd[0] == pytest.approx(2 * d.predicted_cost_usd[0])
    assert np.isnan(after.predicted_cost_usd[1])
    assert [arm.price for arm in pool.arms] == [Price(2.0, 4.0), None]
    for name, array in pool.heads.state().items():
        np.testing.assert_array_equal(array, learned[name])


def test_a_dearer_arm_loses_share_when_only_cost_differs():
    pool = Pool([Arm("a", Price(0, 1)), Arm("b", Price(0, 1))], objective=Objective(cost=1, cost_reference_usd=0.001))
    before = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    np.testing.assert_allclose(before.probabilities, 0.5)
    pool.set_prices({"a": Price(0, 4)})
    assert pool.decide(Prompt(), rng(), decision_id="d", ts=0.0).probabilities[0] < 0.45


def test_the_multiplier_moves_traffic_to_the_cheap_arm_and_is_logged():
    """The dear arm is expected to cost 50e-6·(e⁶ − 1) = 0.02 USD, twice the budget: at λ = 0.8 it loses 1.6."""
    pool = Pool([Arm("dear", Price(0, 50)), Arm("cheap", Price(0, 1)), Arm("unknown")], usd_per_request=0.01)
    before = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    np.testing.assert_allclose(before.probabilities, 1 / 3, atol=0.01)
    pool.pacer.multiplier = 0.8
    after = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    assert (before.pacer_multiplier, after.pacer_multiplier) == (0.0, 0.8)
    assert after.predicted_cost_usd[0] == pytest.approx(0.0201, abs=1e-4)
    assert after.probabilities[1] > 0.9
    # an unknown cost counts as the dearest: their utilities, and so their shares, are equal
    assert after.probabilities[0] == pytest.approx(after.probabilities[2], abs=1e-3)


def test_the_propensity_is_the_logged_probability_of_the_arm_chosen():
    pool = make(4, policy=EpsilonGreedy(0.4))
    for seed in range(50):
        d = pool.decide(Prompt("x"), rng(seed), decision_id="d", ts=0.0)
        assert d.propensity == d.probabilities[d.arms.index(d.chosen)]
        assert d.probabilities.sum() == pytest.approx(1.0)


def test_a_policy_of_intercepts_only_never_sees_the_context():
    pool = make(2, policy=Uniform())
    for i in range(200):
        pool.update(pool.choose(Prompt(category="ab"[i % 2]), rng(i)), quality=float(i % 2))
    a, b = (pool.decide(Prompt(category=c), rng(), decision_id="d", ts=0.0).predicted_quality for c in "ab")
    np.testing.assert_array_equal(a, b)


def test_a_context_of_the_callers_own_is_used_as_it_is():
    pool = make(2)
    context = pool.features.extract(Prompt("hello", 12, category="q"))
    d = pool.decide(context, rng(), decision_id="d", ts=0.0)
    assert d.context is context
    same = pool.decide(Prompt("hello", 12, category="q"), rng(), decision_id="d", ts=0.0)
    np.testing.assert_array_equal(d.probabilities, same.probabilities)


def test_a_decision_survives_its_trip_through_json():
    pool = Pool([Arm("a", Price(1, 2)), Arm("b")], constraints=LIMITED)
    d = pool.decide(Prompt("hi", 3, category="q"), rng(), decision_id="d1", ts=12.5)
    text = json.dumps(d.to_row(), default=np.ndarray.tolist).replace("NaN", "null")
    back = Decision.from_row(json.loads(text))
    for name, value in d.to_row().items():
        np.testing.assert_equal(back.to_row()[name], value)
    assert back.context.x.dtype == np.float32


def test_five_lines_are_enough():
    """The module's own example."""
    pool = Pool([Arm("small"), Arm("large")])
    decision = pool.choose(Prompt("What is 2 + 2?", category="math"), rng())
    pool.update(decision, quality=1.0, latency_s=0.8, output_tokens=12)
    assert pool.heads.counts(QUALITY, 0)[decision.arms.index(decision.chosen)] == 1.0
