"""The pool under a budget and under limits of single requests: who may be chosen, and what is withheld."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_pools import bits, outcome, rng

from bandit import Arm, BestFeasible, Constraints, Feedback, Pool, Price, Prompt, Uniform
from bandit.errors import NoFeasibleArm
from bandit.filters import FilterSettings
from bandit.types import RequestLimits

B = 0.001


def pool_of(*usd_per_million, **kwargs):
    """Arms that cost so much per million output tokens and always write 999 of them: as many 1e-3 USD a call."""
    kwargs.setdefault("usd_per_request", B)
    pool = Pool([Arm(f"m{i}", Price(0.0, usd)) for i, usd in enumerate(usd_per_million)], **kwargs)
    d = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    for arm in pool.names:
        for _ in range(40):
            pool.heads.observe(pool.names.index(arm), d.context.x.astype(float), {1: np.log(1000.0)}, made_at=0, now=0)
    return pool


def decided(pool, seed=0, **kwargs):
    return pool.decide(Prompt(), rng(seed), decision_id="d", ts=0.0, **kwargs)


def test_expected_cost_is_booked_and_put_right_by_the_outcome():
    pool = pool_of(0.5)
    room = pool.pacer.room_usd(0)
    d = pool.choose(Prompt(), rng())
    expected = float(d.predicted_cost_usd[0])
    assert pool.pacer.room_usd(1) == pytest.approx(room - expected + B)
    pool.apply_outcome(d, outcome(d, cost_usd=0.0004))
    assert pool.pacer.room_usd(1) == pytest.approx(room - 0.0004 + B)


def test_a_failure_costs_nothing_and_an_unknown_cost_stays_as_booked():
    for status, cost_usd in (("error", 0.0), ("timeout", 0.0), ("ok", None), ("cancelled", None)):
        pool = pool_of(0.5)
        room = pool.pacer.room_usd(0)
        d = pool.choose(Prompt(), rng())
        pool.apply_outcome(d, outcome(d, status))
        spent = float(d.predicted_cost_usd[0]) if cost_usd is None else cost_usd
        assert pool.pacer.room_usd(1) == pytest.approx(room - spent + B)


def test_a_fallback_adds_its_cost_to_the_same_request():
    pool = pool_of(0.5, 0.6, policy=Uniform())
    room = pool.pacer.room_usd(0)
    d = pool.choose(Prompt(), rng())
    pool.apply_outcome(d, outcome(d, "error", http_status=503))
    pool.apply_outcome(d, outcome(d, attempt=1, cost_usd=0.0007))
    assert pool.pacer.room_usd(1) == pytest.approx(room - 0.0007 + B)


def test_an_arm_that_the_bucket_cannot_pay_for_takes_no_part_and_what_that_saved_is_withheld():
    """At the start 6·B are left; the second arm costs about 10·B. Uniform would have spent half of the difference."""
    pool = pool_of(0.5, 10.0, policy=Uniform())
    d = decided(pool)
    np.testing.assert_array_equal(d.probabilities, [1.0, 0.0])
    assert d.feasible.tolist() == [True, False]
    assert not d.infeasible
    cheap, dear = d.predicted_cost_usd.tolist()
    assert d.withheld_usd == pytest.approx(0.5 * (dear - cheap), rel=1e-6)


def test_a_price_change_acts_at_the_next_decision():
    pool = pool_of(0.5, 10.0, policy=Uniform())
    assert decided(pool).feasible.tolist() == [True, False]
    pool.set_prices({"m0": Price(0, 20.0), "m1": Price(0, 0.1)})
    d = decided(pool)
    np.testing.assert_array_equal(d.probabilities, [0.0, 1.0])
    assert d.predicted_cost_usd[1] == pytest.approx(d.predicted_cost_usd[0] / 200)


def test_the_cheapest_arm_remains_when_nothing_is_affordable():
    pool = pool_of(30.0, 20.0, 25.0)
    d = decided(pool)
    np.testing.assert_array_equal(d.probabilities, [0.0, 1.0, 0.0])
    assert not d.infeasible


def filtered(pool, arm):
    d = decided(pool)
    for _ in range(5):
        pool.apply_outcome(d, outcome(d, model=f"m{arm}", latency_s=9.0))
    assert pool.filters.states[arm] == "filtered"


@pytest.mark.parametrize(("usd", "probed"), [(0.4, True), (50.0, False)])
def test_a_filtered_arm_is_probed_only_if_the_bucket_can_pay_for_it(usd, probed):
    """A probe is a call like any other: without this the bound of the bucket would not hold."""
    pool = pool_of(0.5, usd, constraints=Constraints(p95_latency_s=2.0), filters=FilterSettings(probe_share=0.1))
    filtered(pool, 1)
    assert bool(decided(pool).probabilities[1] > 0) is probed


def test_a_filtered_arm_goes_on_being_probed_while_a_dear_one_is_withheld():
    pool = pool_of(0.5, 0.4, 50.0, constraints=Constraints(p95_latency_s=2.0))
    filtered(pool, 1)
    d = decided(pool)
    assert d.feasible.tolist() == [True, False, False]
    assert d.probabilities[1] > 0
    assert d.probabilities[2] == 0


def test_a_floor_of_exploration_spends_at_most_its_share_of_the_budget():
    """ε = 0.1 over two arms: the one that costs ten times B gets 0.05/10, and the best what is left."""
    pool = pool_of(0.5, 10.0, policy=BestFeasible(0.1), usd_per_request=B)
    d0 = decided(pool)
    for _ in range(1000):  # fill the bucket
        pool.pacer.reserve(pool.step, 0.0)
        pool.step += 1
    pool.apply_feedback(d0, Feedback("d", 0.0, 1.0), model="m0")
    d = decided(pool)
    relative = float(d.predicted_cost_usd[1]) / B
    assert relative > 5
    assert d.probabilities[1] == pytest.approx(0.05 / relative, rel=1e-5)


def test_spending_within_the_window_stays_within_its_bound_with_real_pools():
    """1,500 requests on a policy that ignores cost, costs as noisy as lognormal(0, 0.5): every window ≤ 1.01."""
    pool, r, costs = pool_of(0.3, 5.0, policy=Uniform()), rng(1), []
    for _ in range(1500):
        d = pool.choose(Prompt(), r)
        tokens = int(999 * r.lognormal(0.0, 0.5))
        cost = pool.arms[d.arms.index(d.chosen)].price.cost_usd(0, tokens)
        pool.apply_outcome(d, outcome(d, output_tokens=tokens, cost_usd=cost))
        costs.append(cost)
    total = np.concatenate([[0.0], np.cumsum(costs)])
    assert (total[1000:] - total[:-1000]).max() <= 1.01 * 1000 * B
    assert total[-1] > 0.9 * 1500 * B  # and what may be spent is spent


def test_limits_of_a_request_rule_out_arms_by_their_95_percent_quantile():
    pool = pool_of(0.5, 2.0, policy=Uniform(), usd_per_request=None)
    for row in (0, 1):
        for arm in (0, 1):
            for _ in range(60):
                pool.bounds.observe(row, arm, 0.0)
    before = bits(pool)
    d = decided(pool, limits=RequestLimits(max_cost_usd=0.001))
    np.testing.assert_array_equal(d.probabilities, [1.0, 0.0])
    assert not d.infeasible
    d = decided(pool, limits=RequestLimits(max_cost_usd=0.01))
    np.testing.assert_allclose(d.probabilities, 0.5)
    assert bits(pool) == before


def test_a_limit_that_no_arm_keeps_takes_the_least_over_and_says_so_or_fails():
    pool = pool_of(5.0, 2.0, policy=Uniform(), usd_per_request=None)
    d = decided(pool, limits=RequestLimits(max_cost_usd=1e-6))
    np.testing.assert_array_equal(d.probabilities, [0.0, 1.0])
    assert d.infeasible
    strict = pool_of(5.0, 2.0, usd_per_request=None, constraints=Constraints(on_infeasible="fail"))
    with pytest.raises(NoFeasibleArm) as caught:
        decided(strict, limits=RequestLimits(max_cost_usd=1e-6))
    assert caught.value.excess["m1"] < caught.value.excess["m0"]


def test_an_arm_of_unknown_cost_keeps_no_cost_limit():
    pool = Pool([Arm("known", Price(0, 0.001)), Arm("unknown")], policy=Uniform())
    d = decided(pool, limits=RequestLimits(max_cost_usd=1.0))
    np.testing.assert_array_equal(d.probabilities, [1.0, 0.0])
    nothing = Pool([Arm("one"), Arm("other")], policy=Uniform())
    d = decided(nothing, limits=RequestLimits(max_cost_usd=1.0))
    assert d.infeasible
    np.testing.assert_array_equal(d.probabilities, [0.5, 0.5])


def test_a_short_request_may_keep_a_limit_that_a_long_one_does_not():
    pool = Pool([Arm("cheap", Price(0.1, 0.0)), Arm("dear", Price(10.0, 0.0))], policy=Uniform())
    limits = RequestLimits(max_cost_usd=0.001)
    shares = [
        pool.decide(Prompt(input_tokens=n), rng(), decision_id="d", ts=0.0, limits=limits).probabilities[1]
        for n in (10, 1000)
    ]
    assert shares == [0.5, 0.0]


def test_a_decision_of_other_features_is_no_matter_of_this_budget_and_one_for_a_retired_model_is():
    pool = pool_of(0.5)
    d = pool.choose(Prompt(), rng())
    before = bits(pool)
    old = replace(d, context=replace(d.context, version="another"))
    assert pool.apply_outcome(old, outcome(old, cost_usd=5.0)) == []
    assert bits(pool) == before
    room = pool.pacer.room_usd(1)
    pool.apply_outcome(d, outcome(d, model="gone", cost_usd=0.0009))
    assert pool.pacer.room_usd(1) == pytest.approx(room + float(d.predicted_cost_usd[0]) - 0.0009)
