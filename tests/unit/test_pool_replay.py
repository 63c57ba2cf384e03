"""The log is enough: replays and snapshots rebuild what a pool has learned."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_pools import LIMITED, bits, make, outcome, rng

from bandit import Arm, DriftReset, Features, Feedback, LogisticThompson, Pool, Prompt, Thompson, Uniform, snapshot
from bandit.errors import SnapshotMismatch
from bandit.posterior import QUALITY


def drive(pool, n, seed):
    """Make n requests with feedback a while later, failures, revisions, benchmarks; returns the log of events."""
    r, log_, waiting = rng(seed), [], []
    for i in range(n):
        prompt = Prompt(f"question {i % 7} {'x' * (i % 50)}", input_tokens=i % 90, category=("a", "b", None)[i % 3])
        d = pool.decide(prompt, r, decision_id=f"d{i}", ts=float(i))
        log_.append(("decision", d))
        pool.advance(d)
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
            pool.advance(*event)
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
    """After a restart detectors and caches start anew; the evidence of heads, limits, quantiles and bounds does not."""

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
    assert jump(replayed, replay=True) == changes[:1]  # told, and left to the log
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


def test_a_snapshot_of_other_arms_is_matched_by_name():
    """One that is new starts from its prior and without evidence; what was learned of one that left is lost."""
    old = Pool([Arm(name) for name in ("gone", "kept")], constraints=LIMITED)
    for i in range(400):
        d = old.choose(Prompt("q", category="ab"[i % 2]), rng(i))
        old.update(d, quality=float(i % 3 > 0), latency_s=9.0 if d.chosen == "gone" else 0.5, output_tokens=9)
        old.apply_outcome(d, outcome(d, model="kept"))
    old.apply_reset("kept", "quality", 0.2)
    new = Pool([Arm(name) for name in ("kept", "new")], constraints=LIMITED)
    new.load(snapshot.loads(bits(old)))
    fresh = Pool([Arm("new")], constraints=LIMITED)
    was, now, prior = (pool.heads.state() for pool in (old, new, fresh))
    for name in ("gram", "moment", "square", "weight"):
        np.testing.assert_array_equal(now[name][:, 0], was[name][:, 1])
        np.testing.assert_array_equal(now[name][:, 1], prior[name][:, 0])
    assert now["resets"].tolist() == [[QUALITY, 0, 400]]
    assert new.filters.state()["arms"] == [old.filters.state()["arms"][1], fresh.filters.state()["arms"][0]]
    assert new.standing.latency[0].values() == old.standing.latency[1].values()
    assert [q.count for q in (new.standing.latency[1], new.standing.time_to_first_token[1])] == [0, 0]
    assert new.step == 400


def test_snapshots_of_other_pools_are_refused_and_change_nothing():
    pool = make()
    drive(pool, 50, 5)
    before = bits(pool)
    others = [make(features=Features(["a"])), Pool([Arm(f"x{i}") for i in range(3)])]
    for state in [*(p.state() for p in others), {**pool.state(), "format": 1}, {}]:
        with pytest.raises(SnapshotMismatch):
            pool.load(state)
    assert bits(pool) == before


def test_state_of_an_earlier_format_is_refused_by_its_number():
    pool = make()
    with pytest.raises(SnapshotMismatch, match="learned state has format 1, not 2"):
        pool.load({**pool.state(), "format": 1})


@pytest.mark.parametrize("policy", [Thompson(), LogisticThompson(), Uniform()])
def test_a_loaded_state_is_written_again_byte_by_byte(policy):
    """Every part of it: newcomers, bounds, the ledger, evidence, drift windows, and heads of either kind."""

    def fresh():
        return make(4, constraints=LIMITED, usd_per_request=0.00083, half_life_requests=90.0, policy=policy)

    pool, twin = fresh(), fresh()
    pool.remove_arm("m3")
    drive(pool, 250, 6)
    pool.add_arm(Arm("m3"))
    pool.apply_reset("m0", "latency", 1.0)
    twin.load(snapshot.loads(bits(pool)))
    assert bits(twin) == bits(pool)
    assert twin.newcomers.names == {"m3"}
