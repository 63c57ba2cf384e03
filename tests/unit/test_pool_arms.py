"""Arms that join and leave a running pool: what is kept of the others, and how a newcomer starts."""

from __future__ import annotations

import numpy as np
import pytest
from small_pools import LIMITED, bits, make, outcome, rng

from bandit import Arm, Feedback, Fixed, Pool, Price, Prompt, Weighted
from bandit.errors import InvalidInput, UnknownArm
from bandit.newcomers import Newcomers
from bandit.posterior import LATENCY, QUALITY, TOKENS

PROMPT = Prompt("which?", 100, category="a")


def drive(pool, events, *, start=0, n=120):
    """Requests with outcomes and grades at once; what happened is appended to `events`."""
    for i in range(start, start + n):
        d = pool.choose(Prompt(f"question {i % 7}", i % 50, category="ab"[i % 2]), rng(i))
        arm = int(d.chosen[1:])
        o = outcome(d, latency_s=0.2 + 0.1 * arm, output_tokens=50 + 10 * arm, cost_usd=1e-4 * (1 + arm))
        f = Feedback(d.decision_id, 0.0, float((i * 7 + arm) % 10 < 8 - 2 * arm))
        pool.apply_outcome(d, o)
        pool.apply_feedback(d, f)
        events.append((d, o, f))
    return pool


def known_of(pool, name):
    arm, state = pool.names.index(name), pool.state()
    heads, standing = state["heads"], state["standing"]
    return {
        "heads": [heads[key][:, arm].tolist() for key in ("gram", "moment", "square", "weight")],
        "resets": [(h, step) for h, a, step in heads["resets"].tolist() if a == arm],
        "standing": [standing["filters"]["arms"][arm], standing["latency"][arm], standing["time_to_first_token"][arm]],
        "drift": [values[arm] for values in state["drift"]],
        "bounds": [values[arm] for values in state["bounds"]],
    }


def limited(n=3, **kwargs):
    return make(n, constraints=LIMITED, usd_per_request=0.001, half_life_requests=500.0, **kwargs)


def test_who_stays_keeps_everything_when_arms_join_and_leave():
    pool = drive(limited(), [])
    pool.apply_reset("m1", "latency", 1.0)
    before = {name: known_of(pool, name) for name in pool.names}
    step, pacer = pool.step, pool.pacer.state()
    pool.add_arm(Arm("new", Price(1, 1)))
    assert pool.names == ("m0", "m1", "m2", "new")
    assert {name: known_of(pool, name) for name in before} == before
    pool.remove_arm("m0")
    assert pool.names == ("m1", "m2", "new")
    assert {name: known_of(pool, name) for name in ("m1", "m2")} == {name: before[name] for name in ("m1", "m2")}
    assert pool.step == step
    np.testing.assert_array_equal(pool.pacer.state()["usd"], pacer["usd"])
    assert [arm.price for arm in pool.arms] == [Price(1.0, 3.0), Price(1.0, 4.0), Price(1, 1)]


def test_a_newcomer_starts_from_the_mean_of_the_others_worth_a_quarter_observation():
    """Of two arms with averages a and b: exactly (a + b)/2, for its prior's weight of one is shifted there."""
    pool = make(2, half_life_requests=None)
    d = pool.choose(Prompt(), rng())
    for model, quality, seconds in (("m0", 1.0, 0.1), ("m0", 1.0, 0.1), ("m1", 0.0, 10.0)):
        pool.apply_outcome(d, outcome(d, model=model, latency_s=seconds, output_tokens=7))
        pool.apply_feedback(d, Feedback("d", 0.0, quality), model=model)
    means = {head: pool.heads.averages(head, pool.step).mean() for head in (QUALITY, TOKENS, LATENCY)}
    pool.add_arm(Arm("new"))
    for head, mean in means.items():
        assert pool.heads.averages(head, pool.step)[2] == pytest.approx(mean)
        assert pool.heads.counts(head, pool.step)[2] == pytest.approx(0.25)
    assert means[QUALITY] == pytest.approx((2.5 / 3 + 0.25) / 2)


def test_a_newcomer_of_a_pool_that_knows_nothing_starts_from_its_prior():
    pool = make(2)
    pool.add_arm(Arm("new"))
    np.testing.assert_allclose(pool.heads.averages(QUALITY, 0), 0.5)
    assert pool.heads.counts(QUALITY, 0)[2] == 0.0


def test_benchmark_results_of_a_newcomer_count_as_so_many_answers():
    """It starts at their mean, 0.9, as sure as after 40 answers; cost and latency are not told by them."""
    pool = make(2, half_life_requests=None)
    pool.add_arm(Arm("new"), accuracy=0.9, samples=40)
    assert pool.heads.averages(QUALITY, 0)[2] == pytest.approx(0.9)
    assert pool.heads.counts(QUALITY, 0)[2] == pytest.approx(40.0)
    assert pool.heads.counts(LATENCY, 0)[2] == 0.0


def test_benchmark_results_go_before_the_mean_of_the_others():
    """Exactly their accuracy, beside the quarter of an observation that every head of it starts with."""
    pool = drive(make(2, half_life_requests=100.0), [])
    pool.add_arm(Arm("new"), accuracy=0.9, samples=40)
    assert pool.heads.averages(QUALITY, pool.step)[2] == pytest.approx(0.9)
    assert pool.heads.counts(QUALITY, pool.step)[2] == pytest.approx(40.25)
    for head in (TOKENS, LATENCY):
        averages = pool.heads.averages(head, pool.step)
        assert averages[2] == pytest.approx(averages[:2].mean())
        assert pool.heads.counts(head, pool.step)[2] == pytest.approx(0.25)


def test_a_newcomer_is_capped_until_it_has_30_graded_answers():
    """A quarter pseudo-observation and 30 grades; before, whatever its utility, it gets a quarter."""
    pool = make(2, half_life_requests=None, newcomers=Newcomers(share=0.25, samples=30))
    d = pool.choose(Prompt(), rng())
    for _ in range(200):
        for model in ("m0", "m1"):
            pool.apply_feedback(d, Feedback("d", 0.0, 0.2), model=model)
    pool.add_arm(Arm("new", Price(1, 2)), accuracy=0.95, samples=0)
    for i in range(30):
        share = pool.decide(Prompt(), rng(), decision_id="d", ts=0.0).probabilities[2]
        assert share <= 0.25 + 1e-12
        assert pool.newcomers.names == {"new"}
        pool.apply_feedback(d, Feedback("d", 0.0, 1.0), model="new")
        assert i >= 10 or share > 0.05  # it has its chance
    assert pool.newcomers.names == frozenset()
    assert pool.decide(Prompt(), rng(), decision_id="d", ts=0.0).probabilities[2] > 0.9


@pytest.mark.parametrize(
    ("policy", "after_add", "after_remove"),
    [(Weighted((1.0, 2.0, 3.0)), [1 / 6, 2 / 6, 3 / 6, 0], [2 / 5, 3 / 5, 0]), (Fixed(2), [0, 0, 1, 0], [0, 1, 0])],
)
def test_policies_that_name_arms_go_on_naming_the_same(policy, after_add, after_remove):
    pool = make(3, policy=policy)
    pool.add_arm(Arm("new", Price(1, 2)))
    np.testing.assert_allclose(pool.decide(PROMPT, rng(), decision_id="d", ts=0.0).probabilities, after_add)
    pool.remove_arm("m0")
    np.testing.assert_allclose(pool.decide(PROMPT, rng(), decision_id="d", ts=0.0).probabilities, after_remove)


def test_what_cannot_be_done_is_refused_and_changes_nothing():
    pool = drive(make(3, policy=Weighted((0.0, 0.0, 1.0))), [], n=20)
    before, policy = bits(pool), pool.policy
    refused = [
        (lambda: pool.add_arm(Arm("m1", Price(9, 9))), InvalidInput, "distinct"),
        (lambda: pool.add_arm(Arm("new"), accuracy=1.2, samples=3), InvalidInput, "accuracy"),
        (lambda: pool.remove_arm("m9"), UnknownArm, "m9"),
        (lambda: pool.remove_arm("m2"), InvalidInput, "another policy first"),
    ]
    for call, error, message in refused:
        with pytest.raises(error, match=message):
            call()
        assert (bits(pool), pool.policy) == (before, policy)
        assert pool.arms[1].price == Price(1.0, 3.0)
        pool.decide(PROMPT, rng(), decision_id="d", ts=0.0)


def test_the_last_arm_cannot_leave():
    pool = Pool([Arm("only")])
    with pytest.raises(InvalidInput, match="'only' is the pool's last model"):
        pool.remove_arm("only")


def test_decisions_from_before_a_change_still_teach_those_who_stayed():
    pool = make(3, half_life_requests=None)
    d = pool.choose(PROMPT, rng())
    pool.add_arm(Arm("new", Price(1, 2)))
    pool.remove_arm("m0")
    counts = pool.heads.counts(LATENCY, 1).copy()
    for model in ("m0", "m2"):
        pool.apply_outcome(d, outcome(d, model=model))
    np.testing.assert_allclose(pool.heads.counts(LATENCY, 1) - counts, [0, 1, 0])


def test_a_replay_that_changes_arms_and_prices_at_the_same_points_equals_the_pool_that_ran():
    def change(pool, number):
        if number == 0:
            pool.add_arm(Arm("m3", Price(0.5, 1)), accuracy=0.8, samples=10)
        elif number == 1:
            pool.remove_arm("m1")
        else:
            pool.set_prices({"m0": Price(3, 9), "m3": None})

    def replay(pool, events):
        for d, o, f in events:
            pool.advance(d)
            pool.apply_outcome(d, o, replay=True)
            pool.apply_feedback(d, f, replay=True)

    live, twin, stretches = limited(), limited(), []
    for number in range(4):
        stretches.append([])
        drive(live, stretches[-1], start=100 * number, n=100)
        if number < 3:
            change(live, number)
    for number, events in enumerate(stretches):
        replay(twin, events)
        if number < 3:
            change(twin, number)
    assert bits(twin) == bits(live)
    one, two = (pool.decide(PROMPT, rng(), decision_id="d", ts=0.0) for pool in (live, twin))
    np.testing.assert_array_equal(one.probabilities, two.probabilities)
    assert live.names == ("m0", "m2", "m3")
