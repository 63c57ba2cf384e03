"""A pool whose arms changed between two runs: what was learned of each arm stays with its name."""

from __future__ import annotations

import numpy as np
import pytest

from bandit import Arm, Constraints, Feedback, Outcome, Pool, Prompt, snapshot
from bandit.errors import SnapshotMismatch
from bandit.posterior import LATENCY, QUALITY

LIMITS = Constraints(p95_latency_s=1.0, max_error_rate=0.1)


def make(*names, constraints=LIMITS):
    return Pool([Arm(name) for name in names], constraints=constraints, half_life_requests=500.0)


def taught(*names, calls=300):
    """A pool in which arm number i has quality (i + 1) / 10, and the first one takes too long."""
    pool, rng = make(*names), np.random.default_rng(3)
    for _ in range(calls):
        decision = pool.choose(Prompt(text="which?", category="c"), rng)
        arm = names.index(decision.chosen)
        pool.apply_outcome(
            decision, Outcome("", 0.0, decision.chosen, "ok", 0.1 if arm else 5.0, output_tokens=10 + arm)
        )
        pool.apply_feedback(decision, Feedback("", 0.0, (arm + 1) / 10))
    pool.apply_reset(names[1], "latency", 1.0)
    return pool


def carried(source, *names):
    pool = make(*names)
    pool.load(snapshot.loads(snapshot.dumps(source.state())))
    return pool


def of_arm(pool, name):
    """Everything that is known of one arm."""
    arm, state = pool.names.index(name), pool.state()
    heads, standing = state["heads"], state["standing"]
    return {
        "heads": [heads[key][:, arm].tolist() for key in ("gram", "moment", "square", "weight")],
        "resets": [(h, step) for h, a, step in heads["resets"].tolist() if a == arm],
        "standing": [standing["filters"]["arms"][arm], standing["latency"][arm], standing["time_to_first_token"][arm]],
        "drift": [values[arm] for values in state["drift"]],
        "bounds": [values[arm] for values in state["bounds"]],
    }


def test_the_same_arms_in_another_order_keep_what_was_learned_of_each():
    before = taught("a", "b", "c")
    after = carried(before, "c", "a", "b")
    for name in "abc":
        assert of_arm(after, name) == of_arm(before, name)
    assert after.step == before.step
    assert before.filters.states[0] == after.filters.states[1] == "filtered"


def test_a_new_arm_starts_from_its_prior_beside_the_others():
    before = taught("a", "b", "c")
    after = carried(before, "a", "new", "b", "c")
    for name in "abc":
        assert of_arm(after, name) == of_arm(before, name)
    assert of_arm(after, "new") == of_arm(make("new"), "new")
    averages = [pool.heads.averages(QUALITY, pool.step) for pool in (before, after)]
    assert averages[1][1] == pytest.approx(0.5)
    assert averages[1][3] == pytest.approx(averages[0][2])
    assert after.newcomers.names == {"new"}


def test_an_arm_that_left_takes_only_its_own_along():
    before = taught("a", "b", "c")
    after = carried(before, "c", "b")
    for name in "cb":
        assert of_arm(after, name) == of_arm(before, name)


def test_a_pool_with_changed_arms_goes_on_choosing_and_learning():
    pool, rng = carried(taught("a", "b", "c"), "new", "b"), np.random.default_rng(1)
    weights = pool.heads.weight[LATENCY].copy()
    for _ in range(50):
        decision = pool.choose(Prompt(), rng)
        pool.update(decision, quality=1.0, latency_s=0.1)
    assert (pool.heads.weight[LATENCY] > weights).all()


def test_a_pool_that_has_none_of_the_arms_takes_nothing_over():
    pool = make("x", "y")
    before = snapshot.dumps(pool.state())
    with pytest.raises(SnapshotMismatch, match="none of its arms"):
        pool.load(taught("a", "b").state())
    assert snapshot.dumps(pool.state()) == before


def test_other_limits_and_other_arms_at_once():
    """The evidence on limits starts anew, the rest stays."""
    before = taught("a", "b")
    after = make("b", "new", constraints=Constraints(max_error_rate=0.2))
    after.load(before.state())
    assert of_arm(after, "b")["heads"] == of_arm(before, "b")["heads"]
    assert after.filters.states == ("unknown", "unknown")
