"""The pool: deciding changes nothing, each kind of event teaches what it should, and a replay equals the original."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log

import numpy as np
import pytest

from bandit import (
    Arm,
    Constraints,
    Decision,
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
    Transition,
    Uniform,
    snapshot,
)
from bandit.errors import InvalidInput, NoFeasibleArm, SnapshotMismatch, UnknownArm
from bandit.posterior import LATENCY, QUALITY, TOKENS

LIMITED = Constraints(p95_latency_s=2.0, max_error_rate=0.1, min_accuracy=0.7, accuracy_evidence="both")


def make(n=3, **kwargs):
    kwargs.setdefault("objective", Objective(quality=1, cost=0.2, latency=0.1))
    return Pool([Arm(f"m{i}", Price(1.0, 2.0 + i)) for i in range(n)], **kwargs)


def rng(seed=0):
    return np.random.default_rng(seed)


def outcome(decision, status="ok", latency_s=0.5, output_tokens=100, **kwargs):
    model = kwargs.pop("model", decision.chosen)
    return Outcome(decision.decision_id, 0.0, model, status, latency_s, output_tokens=output_tokens, **kwargs)


def bits(pool):
    return snapshot.dumps(pool.state())


def drive(pool, n, seed, *, replayed=None):
    """n requests with feedback a while later, failures, revisions, benchmarks; returns the log of events."""
    r, log_, waiting = rng(seed), [], []
    for i in range(n):
        prompt = Prompt(f"question {i % 7} {'x' * (i % 50)}", input_tokens=i % 90, category=("a", "b", None)[i % 3])
        d = pool.decide(prompt, r, decision_id=f"d{i}", ts=float(i))
        log_.append(("decision", d))
        pool.advance()
        status = str(r.choice(["ok"] * 17 + ["error", "timeout", "cancelled"]))
        o = outcome(
            d,
            status,
            latency_s=float(r.lognormal(0.0 if i < n // 2 else 2.5, 0.3)),
            output_tokens=int(r.integers(0, 500)),
            cost_usd=float(r.random() * 1e-3),
            time_to_first_token_s=0.1,
        )
        log_.append(("outcome", d, o))
        resets(log_, pool, pool.apply_outcome(d, o))
        waiting.append((d, float(r.random() < (0.9 if i < n // 2 else 0.2))))
        if i % 3 == 0:
            old, quality = waiting.pop(int(r.integers(len(waiting))))
            f = Feedback(old.decision_id, 0.0, quality)
            log_.append(("feedback", old, f))
            resets(log_, pool, pool.apply_feedback(old, f))
            if i % 5 == 0:
                f = replace(f, quality=1 - quality, revision=1, revises=quality)
                log_.append(("feedback", old, f))
                pool.apply_feedback(old, f)
        if i % 11 == 0:
            log_.append(("benchmark", f"m{i % len(pool.arms)}", float(r.random() < 0.8)))
            pool.apply_benchmark(*log_[-1][1:])
    return log_


def resets(log_, pool, changes):
    log_ += [("reset", pool.names[c.arm], c.head, c.change) for c in changes if isinstance(c, DriftReset)]


def replay(pool, events):
    for kind, *event in events:
        if kind == "decision":
            pool.advance()
        elif kind == "outcome":
            pool.apply_outcome(*event, replay=True)
        elif kind == "feedback":
            pool.apply_feedback(*event, replay=True)
        elif kind == "benchmark":
            pool.apply_benchmark(*event)
        else:
            pool.apply_reset(*event)


def test_deciding_changes_nothing():
    pool = make(constraints=LIMITED, usd_per_request=0.0005)
    drive(pool, 300, 1)
    before = bits(pool)
    for i in range(20):
        pool.decide(Prompt(f"what {i}", category="z"), rng(i), decision_id=str(i), ts=0.0)
    assert bits(pool) == before


def test_equal_randomness_gives_an_equal_decision():
    pool = make()
    one, two = (pool.decide(Prompt("hi"), rng(5), decision_id="d", ts=1.0) for _ in range(2))
    assert json.dumps(one.to_row(), default=np.ndarray.tolist) == json.dumps(two.to_row(), default=np.ndarray.tolist)


def test_replaying_the_log_rebuilds_the_pool_bit_by_bit():
    """Decisions count steps, resets come from the log; every learned array is equal, and so is the next decision."""

    def fresh():
        return make(constraints=LIMITED, usd_per_request=0.0005, half_life_requests=400.0)

    first, second = fresh(), fresh()
    events = drive(first, 1500, 2)
    assert any(kind == "reset" for kind, *_ in events)
    replay(second, events)
    assert bits(second) == bits(first)
    one, two = (p.decide(Prompt("next", category="a"), rng(), decision_id="d", ts=0.0) for p in (first, second))
    np.testing.assert_array_equal(one.probabilities, two.probabilities)


def test_a_snapshot_and_the_rest_of_the_log_rebuild_what_was_learned_bit_by_bit():
    """After a restart detectors and caches start anew; the evidence of heads, limits and quantiles does not."""

    def fresh():
        return make(constraints=LIMITED, usd_per_request=0.0005, half_life_requests=400.0)

    first, second, half = fresh(), fresh(), fresh()
    events = drive(first, 1500, 2)
    cut = next(i for i, event in enumerate(events) if event[0] == "decision" and event[1].step == 700)
    replay(half, events[:cut])
    second.load(snapshot.loads(bits(half)))
    replay(second, events[cut:])

    def learned(pool):
        state = pool.state()
        del state["drift"], state["heads"]["uses_slopes"]
        return snapshot.dumps(state)

    assert learned(second) == learned(first)


def test_a_replay_leaves_drift_to_the_resets_in_the_log():
    def jump(pool, *, replay):
        changes = []
        for i in range(800):
            d = pool.choose(Prompt(), rng(i))
            y = float(rng(10_000 + i).random() < (0.95 if i < 400 else 0.05))
            changes += pool.apply_feedback(d, Feedback(d.decision_id, 0.0, y), replay=replay)
        return changes

    live, replayed = make(1), make(1)
    changes = jump(live, replay=False)
    assert [c.head for c in changes] == ["quality"]
    assert changes[0].change < -0.5
    assert jump(replayed, replay=True) == []
    counts = [p.heads.counts(QUALITY, 800)[0] for p in (live, replayed)]
    replayed.apply_reset("m0", "quality", changes[0].change)
    assert counts[0] < counts[1]
    assert replayed.heads.counts(QUALITY, 800)[0] == pytest.approx(0.1 * counts[1])


def test_after_a_jump_the_prediction_follows_quickly():
    """1,000 calls at 0.9, then at 0.2: an average over all would still say (900 + 30)/1150 = 0.81 after 150 more."""
    pool, r, changes = make(1, half_life_requests=None), rng(3), []
    for i in range(1150):
        d = pool.choose(Prompt(), r)
        changes += pool.update(d, quality=float(r.random() < (0.9 if i < 1000 else 0.2)))
    (reset,) = changes
    assert isinstance(reset, DriftReset)
    assert (reset.arm, reset.head) == (0, "quality")
    assert reset.change == pytest.approx(-0.7, abs=0.2)
    # a tenth of 1,000 old ones, less than half of the 150 new ones discounted with them
    assert pool.decide(Prompt(), r, decision_id="", ts=0.0).predicted_quality[0] < 0.7


def test_a_snapshot_goes_on_where_the_original_stands():
    first, second = (make(constraints=LIMITED, usd_per_request=0.0005) for _ in range(2))
    drive(first, 400, 4)
    second.load(snapshot.loads(bits(first)))
    assert (second.step, bits(second)) == (400, bits(first))
    one, two = (p.decide(Prompt("next"), rng(), decision_id="d", ts=0.0) for p in (first, second))
    assert one.pacer_multiplier == two.pacer_multiplier
    # predictions agree up to the caches' 2 %
    np.testing.assert_allclose(one.predicted_quality, two.predicted_quality, atol=0.02)


def test_snapshots_of_other_pools_are_refused_and_change_nothing():
    pool = make()
    drive(pool, 50, 5)
    before = bits(pool)
    others = [make(2), make(features=Features(["a"])), Pool([Arm(f"x{i}") for i in range(3)])]
    for state in [*(p.state() for p in others), {**pool.state(), "format": 99}, {}]:
        with pytest.raises(SnapshotMismatch):
            pool.load(state)
    assert bits(pool) == before


def test_steps_count_routed_requests():
    pool = make()
    assert [pool.choose(Prompt(), rng(i)).step for i in range(3)] == [0, 1, 2]
    pool.decide(Prompt(), rng(), decision_id="d", ts=0.0)
    assert pool.step == 3
    pool.advance()
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


def test_the_pacer_moves_traffic_to_the_cheap_arm_and_is_logged():
    pool = Pool([Arm("dear", Price(0, 50)), Arm("cheap", Price(0, 1)), Arm("unknown")], usd_per_request=0.001)
    before = pool.choose(Prompt(), rng())
    for _ in range(5):
        pool.apply_outcome(before, outcome(before, cost_usd=0.01))
    after = pool.choose(Prompt(), rng())
    assert (before.pacer_multiplier, after.pacer_multiplier) == (0.0, pytest.approx(5 * 0.05 * 4))
    assert after.probabilities[1] > 0.9
    # an unknown cost counts as the dearest: their utilities, and so their shares, are equal
    assert after.probabilities[0] == pytest.approx(after.probabilities[2], abs=1e-3)


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
    assert d.probabilities[1] == 0.02
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
    pool.apply_outcome(d, outcome(d, "error", model="m0"))  # errors 1 of 2: five times the limit of 0.1
    pool.apply_feedback(d, Feedback("d", 0.0, 1.0), model="m1")  # 0.75 against 0.7
    assert pool.excess() == pytest.approx({"m0": 4.0, "m1": 0.0}, abs=1e-12)


@pytest.mark.parametrize(("change", "state"), [(1.0, "unknown"), (-1.0, "admitted")])
def test_drift_to_the_worse_voids_a_certificate_and_to_the_better_does_not(change, state):
    pool = make(1, constraints=Constraints(p95_latency_s=2.0))
    violating(pool, [0], seconds={0: 0.5}, times=300)
    assert pool.filters.states == ("admitted",)
    changes = pool.apply_reset("m0", "latency", change)
    assert pool.filters.states == (state,)
    assert [type(c) for c in changes] == ([Transition] if state == "unknown" else [])
    assert pool.apply_reset("m0", "quality", -1.0) == []  # follows another head


def test_drift_does_not_free_a_filtered_arm():
    pool = make(2, constraints=Constraints(p95_latency_s=2.0))
    violating(pool, [0], seconds={0: 9.0})
    pool.apply_reset("m0", "latency", -5.0)
    assert pool.filters.states == ("filtered", "unknown")


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
