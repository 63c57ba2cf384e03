"""The pool under limits: who is filtered, who is chosen when nobody is left, and what drift does to certificates."""

from __future__ import annotations

import numpy as np
import pytest
from small_pools import LIMITED, bits, make, outcome, rng

from bandit import (
    Arm,
    Constraints,
    Feedback,
    FilterSettings,
    Pool,
    Price,
    Prompt,
    Transition,
)
from bandit.errors import NoFeasibleArm
from bandit.types import RequestLimits


def violating(pool, arms, *, seconds, times=5):
    changes = []
    d = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    for arm in arms:
        for _ in range(times):
            changes += pool.apply_outcome(d, outcome(d, model=f"m{arm}", latency_s=seconds[arm]))
    return changes


def test_a_slow_arm_is_filtered_and_gets_its_probe_share_only():
    pool = make(3, constraints=Constraints(p95_latency_s=2.0), filters=FilterSettings(probe_share=0.02))
    changes = violating(pool, [1], seconds={1: 9.0}, times=2)
    assert [(c.arm, c.to_state) for c in changes if isinstance(c, Transition)] == [(1, "filtered")]
    d = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    assert list(d.feasible) == [True, False, True]
    assert d.probabilities[1] == 0.005  # a quarter, while nothing says that it recovered
    assert not d.infeasible


SECONDS = {0: 6.0, 1: 3.0, 2: 9.0}


def test_when_no_arm_is_feasible_the_least_violating_is_chosen_and_flagged():
    pool = make(3, constraints=Constraints(p95_latency_s=2.0))
    violating(pool, range(3), seconds=SECONDS)
    assert pool.excess() == pytest.approx({"m0": 2.0, "m1": 0.5, "m2": 3.5})
    d = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    assert d.infeasible
    assert not d.feasible.any()
    assert d.probabilities.sum() == pytest.approx(1.0)
    assert d.probabilities[1] > 0.9
    assert (d.probabilities > 0).all()  # the others are still probed


def test_when_no_arm_is_feasible_a_pool_may_refuse():
    pool = make(3, constraints=Constraints(p95_latency_s=2.0, on_infeasible="fail"))
    violating(pool, range(3), seconds=SECONDS)
    before = bits(pool)
    with pytest.raises(NoFeasibleArm, match=r"m1 by 50%, m0 by 200%, m2 by 350%") as caught:
        pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    assert caught.value.excess == pytest.approx({"m0": 2.0, "m1": 0.5, "m2": 3.5})
    assert bits(pool) == before


def test_the_excess_is_the_worst_over_all_limits():
    pool = make(2, constraints=LIMITED, half_life_requests=None)
    d = pool.choose(Prompt(), rng())
    pool.apply_outcome(d, outcome(d, model="m0", latency_s=1.0))  # p95 half of its limit
    pool.apply_outcome(d, outcome(d, "error", model="m0"))  # counts as 20 s: p95 of (1, 20) is 19.05
    pool.apply_feedback(d, Feedback("d", 0.0, 1.0), model="m1")  # 0.75 against 0.7
    assert pool.excess() == pytest.approx({"m0": 19.05 / 2.0 - 1.0, "m1": 0.0}, abs=1e-12)


WORSE_AND_BETTER = [("latency", 1.0, -1.0), ("quality", -0.3, 0.3)]


@pytest.mark.parametrize(("head", "worse", "better"), WORSE_AND_BETTER)
def test_drift_to_the_worse_voids_a_certificate_and_to_the_better_does_not(head, worse, better):
    """Each head's drift speaks about its own limit only, and a certificate that recent calls bear out stays."""
    limit = {"latency": Constraints(p95_latency_s=2.0), "quality": Constraints(min_accuracy=0.7)}[head]
    pool = make(1, constraints=limit)
    violating(pool, [0], seconds={0: 0.5}, times=300)
    for _ in range(100):
        pool.apply_benchmark("m0", 1.0)
    assert pool.filters.states == ("admitted",)
    for name, change in ((head, better), (head, worse), ("output_tokens", 1.0)):
        assert pool.apply_reset("m0", name, change) == []
    while pool.filters.compliance()[0] >= 0.5:  # one bad call in three or ten, too few to be proved or noticed yet
        for bad in (1.0, *[0.0] * (2 if head == "quality" else 9)):
            pool.filters.observe(0, 0, bad)
    assert pool.filters.states == ("admitted",)
    assert pool.apply_reset("m0", head, better) == []
    (transition,) = pool.apply_reset("m0", head, worse)
    assert (transition.to_state, transition.reason) == ("unknown", f"drift in {head}")
    assert pool.filters.evidence(0, 0).calls == 0


def test_the_excess_of_a_first_token_limit_is_that_of_first_tokens():
    pool = make(1, constraints=Constraints(p95_time_to_first_token_s=0.2))
    d = pool.choose(Prompt(), rng())
    pool.apply_outcome(d, outcome(d, latency_s=9.0, time_to_first_token_s=0.3))
    assert pool.excess() == pytest.approx({"m0": 0.5})


def test_drift_does_not_free_a_filtered_arm():
    pool = make(2, constraints=Constraints(p95_latency_s=2.0))
    violating(pool, [0], seconds={0: 9.0})
    pool.apply_reset("m0", "latency", -5.0)
    assert pool.filters.states == ("filtered", "unknown")


def doubtful(n=2, **constraints):
    """Arms 0 and 1 have four calls each, of which two took 3 and 4 s: surely not within 5 %, and not proved yet."""
    pool = make(n, constraints=Constraints(p95_latency_s=2.0, **constraints))
    d = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    for i in range(4):
        for arm in (0, 1):
            pool.apply_outcome(d, outcome(d, model=f"m{arm}", latency_s=3.0 + arm if i % 3 == 0 else 0.1))
    return pool, d


def test_where_probably_no_arm_keeps_the_limits_rows_are_flagged_and_most_go_to_the_least_violating():
    """Four calls each, two of them slow, are too few to be given up; a fifth says enough, and none is filtered yet."""
    pool, d = doubtful()
    assert not pool.decide(Prompt(), rng(), decision_id="d", ts=0.0).infeasible
    fifth_call(pool, d)
    assert pool.filters.states == ("unknown", "unknown")
    assert pool.filters.hopeless
    flagged = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    assert flagged.infeasible
    assert list(flagged.feasible) == [True, True]
    assert flagged.probabilities[0] >= 0.8
    assert 0 < flagged.probabilities[1] <= 0.2
    assert flagged.probabilities.sum() == pytest.approx(1.0)
    for _ in range(100):  # it recovers: hope again
        pool.apply_outcome(d, outcome(d, model="m1", latency_s=0.1))
    assert not pool.decide(Prompt(), rng(), decision_id="d", ts=0.0).infeasible


def fifth_call(pool, d):
    for model in ("m0", "m1"):
        pool.apply_outcome(d, outcome(d, model=model, latency_s=0.1))


def test_probes_of_filtered_arms_go_on_where_the_others_probably_miss_their_limits():
    pool, d = doubtful(3)
    fifth_call(pool, d)
    assert not pool.decide(Prompt(), rng(), decision_id="d", ts=0.0).infeasible  # m2 has not been tried
    violating(pool, [2], seconds={2: 9.0})
    flagged = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    assert flagged.infeasible
    assert list(flagged.feasible) == [True, True, False]
    assert flagged.probabilities[2] == 0.005
    assert 0 < flagged.probabilities[1] <= 0.2 * 0.995
    assert flagged.probabilities.sum() == pytest.approx(1.0)


def test_a_least_violating_arm_that_the_request_rules_out_gets_nothing():
    """m0 is the least violating, and too dear for this request; m1 is what remains but for the probes of m2."""
    pool, d = doubtful(3)
    fifth_call(pool, d)
    violating(pool, [2], seconds={2: 9.0})
    pool.set_prices({"m0": Price(1.0, 90.0)})
    cost_usd, _ = pool.upper_bounds(d.context)
    limits = RequestLimits(max_cost_usd=float(cost_usd[1:].max()) * 1.01)
    flagged = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0, limits=limits)
    assert flagged.infeasible
    np.testing.assert_allclose(flagged.probabilities, [0.0, 0.995, 0.005])


def test_a_pool_that_fails_where_none_is_feasible_needs_proof_for_it():
    pool, d = doubtful(on_infeasible="fail")
    fifth_call(pool, d)
    assert pool.filters.hopeless
    d = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    assert not d.infeasible
    assert d.probabilities.max() < 0.8


def test_a_price_by_the_call_is_certain_from_the_first_call():
    """It does not vary with the answer's length, of which nothing is known yet."""
    pool = Pool([Arm(f"m{i}", Price(0.0, 0.0, per_call=usd)) for i, usd in enumerate((0.001, 0.01))])
    d = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0, limits=RequestLimits(max_cost_usd=0.009))
    assert list(d.probabilities) == [1.0, 0.0]
