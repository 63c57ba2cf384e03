"""A simulated run: the order of events in virtual time, and that the pool learns what a service would have learned."""

from __future__ import annotations

import numpy as np
import pytest
from small_pools import LIMITED, bits

from bandit import (
    Arm,
    Constraints,
    Features,
    Feedback,
    Fixed,
    Objective,
    Outcome,
    Pool,
    Price,
    Prompt,
    Transition,
    Uniform,
)
from bandit.errors import InvalidInput
from evaluation.simulation import Workload, simulate
from serving.records import Labels, decision_event, feedback_event, filter_event, outcome_event

NAN = float("nan")


class Diary:
    """What happened, in its order."""

    def __init__(self):
        self.entries = []

    def decided(self, decision):
        self.entries.append(("decided", decision.decision_id, decision.ts))

    def came_back(self, outcome):
        self.entries.append(("came back", outcome.decision_id, outcome.ts))

    def graded(self, feedback):
        self.entries.append(("graded", feedback.decision_id, feedback.ts))

    def changed(self, decision, changes):
        self.entries.append(("changed", decision.decision_id, len(changes)))


class Recorder:
    """The same run as the events a service would have recorded, in a store."""

    def __init__(self, store, pool):
        self.store, self.pool = store, pool

    def decided(self, decision):
        self.store.append_nowait([decision_event(decision, Labels())])

    def came_back(self, outcome):
        self.store.append_nowait([outcome_event(outcome)])

    def graded(self, feedback):
        self.store.append_nowait([feedback_event(feedback, None)])

    def changed(self, decision, changes):
        del decision
        self.store.append_nowait([filter_event(self.pool.name, self.pool.names, change) for change in changes])


def workload(n, models=("a", "b"), features=None, **given):
    """So many calls with the same known outcomes for each model, or those given, as rows or one value for all."""
    features = features or Features()
    contexts = tuple(
        features.extract(Prompt(f"question {i}", input_tokens=20 + i, category=("x", "y", None)[i % 3]))
        for i in range(6)
    )
    values = {"quality": 1.0, "cost_usd": 0.001, "latency_s": 0.5, "input_tokens": 20, "output_tokens": 100} | given
    arrays = {name: np.broadcast_to(np.array(v, dtype=float), (len(models), n)).copy() for name, v in values.items()}
    return Workload(models=models, contexts=contexts, prompts=np.arange(n) % 6, **arrays)


def changing(n, seed=5):
    """Random outcomes that drift half way, with gaps: limits break and heads are reset."""
    r = np.random.default_rng(seed)
    good = np.where(np.arange(n) < n // 2, [[0.9], [0.6]], [[0.1], [0.7]])
    latency = r.lognormal(np.where(np.arange(n) < n // 2, -0.5, [[1.5], [-0.5]]), 0.3)
    quality = (r.random((2, n)) < good).astype(float)
    quality[r.random((2, n)) < 0.1] = NAN
    latency[r.random((2, n)) < 0.05] = NAN
    tokens = r.integers(1, 500, (2, n)).astype(float)
    tokens[r.random((2, n)) < 0.05] = NAN
    return workload(n, quality=quality, latency_s=latency, output_tokens=tokens, cost_usd=r.random((2, n)) * 1e-3)


def pool_of(models=("a", "b"), **more):
    return Pool([Arm(name, Price(1.0, 10.0)) for name in models], **more)


def rng(seed=0):
    return np.random.default_rng(seed)


def test_events_happen_in_the_order_of_their_virtual_times():
    """One call a second from 100 s; answers after 1.5 s, 0.2 s and an unknown time; grades a second later."""
    diary = Diary()
    calls = workload(3, latency_s=[[1.5, 0.2, NAN]] * 2)
    simulate(pool_of(), calls, rng=rng(), rate_per_s=1.0, feedback_delay_s=1.0, start_ts=100.0, observer=diary)
    expected = [
        ("decided", "sim-0", 100.0),
        ("decided", "sim-1", 101.0),
        ("came back", "sim-1", 101.2),
        ("came back", "sim-0", 101.5),
        ("decided", "sim-2", 102.0),
        ("came back", "sim-2", 102.0),
        ("graded", "sim-1", 102.2),
        ("graded", "sim-0", 102.5),
        ("graded", "sim-2", 103.0),
    ]
    assert [entry[:2] for entry in diary.entries] == [entry[:2] for entry in expected]
    assert [entry[2] for entry in diary.entries] == pytest.approx([entry[2] for entry in expected])


def test_of_things_due_at_one_time_the_older_comes_first_and_a_new_call_last():
    """All is due at second 2: the answers to calls 0 and 1, their grades (no delay), and the arrival of call 2."""
    diary = Diary()
    simulate(pool_of(), workload(3, latency_s=[[2.0, 1.0, 0.0]] * 2), rng=rng(), observer=diary)
    assert [entry[:2] for entry in diary.entries[2:7]] == [
        ("came back", "sim-0"),
        ("came back", "sim-1"),
        ("graded", "sim-0"),
        ("graded", "sim-1"),
        ("decided", "sim-2"),
    ]


def test_a_decision_knows_what_came_back_before_it_and_nothing_else():
    """The first answer takes 1.5 s: the decision at second 1 sees an untouched pool, that at second 2 does not."""
    calls = workload(3, latency_s=[[1.5, 1.5, 1.5]] * 2, quality=0.0)
    trace = simulate(pool_of(policy=Fixed(0)), calls, rng=rng())
    assert trace.predicted_quality[1, 0] == trace.predicted_quality[0, 0] == 0.5
    assert trace.predicted_quality[2, 0] < 0.5


def test_a_trace_tells_what_was_chosen_and_what_it_yielded():
    quality, cost = [[0.1, 0.2, 0.3], [0.4, 0.5, NAN]], [[1e-3, 2e-3, 3e-3], [4e-3, 5e-3, 6e-3]]
    trace = simulate(pool_of(policy=Fixed(1)), workload(3, quality=quality, cost_usd=cost), rng=rng())
    assert trace.chosen.tolist() == [1, 1, 1]
    assert trace.probabilities.tolist() == [[0.0, 1.0]] * 3
    assert trace.propensity.tolist() == [1.0] * 3
    np.testing.assert_array_equal(trace.quality, [0.4, 0.5, NAN])
    assert trace.graded.tolist() == [True, True, False]
    assert trace.cost_usd.tolist() == [4e-3, 5e-3, 6e-3]
    assert trace.latency_s.tolist() == [0.5] * 3
    assert trace.arrived_ts.tolist() == [0.0, 1.0, 2.0]
    assert trace.feasible.all()
    assert not trace.flagged.any()


def test_models_are_drawn_from_the_logged_probabilities():
    """Uniform over two: of 2,000 draws 1,000 ± 4 standard deviations of 22.4 each."""
    trace = simulate(pool_of(policy=Uniform()), workload(2000), rng=rng())
    assert trace.probabilities.tolist() == [[0.5, 0.5]] * 2000
    assert abs(int(trace.chosen.sum()) - 1000) < 4 * 22.4


def test_one_seed_is_one_run():
    first, second, other = (
        simulate(pool_of(), changing(300), rng=rng(seed), rate_per_s=5.0, poisson=True, feedback_share=0.5)
        for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    np.testing.assert_array_equal(first.arrived_ts, second.arrived_ts)
    assert first.chosen.tolist() == second.chosen.tolist()
    assert first.chosen.tolist() != other.chosen.tolist()


def test_a_service_that_replays_the_runs_events_has_learned_the_same(make_learner, held_store):
    """Bit by bit, with answers and grades that overtake each other, filters that close, and drift."""
    pool = make_learner().pools["auto"]
    trace = simulate(
        pool,
        changing(1200),
        rng=rng(2),
        rate_per_s=3.0,
        feedback_delay_s=7.5,
        feedback_share=0.8,
        observer=Recorder(held_store, pool),
    )
    held_store.commit()
    restarted = make_learner(cache_decisions=5000)
    restarted.recover()
    assert bits(restarted.pools["auto"]) == bits(pool)
    assert any(isinstance(change, Transition) for _, change in trace.changes)
    assert len(trace.changes) > sum(isinstance(change, Transition) for _, change in trace.changes)


async def test_a_service_that_meets_the_same_calls_decides_and_learns_the_same(make_learner):
    """A learner as the service runs it, on the same draws (a run draws first who gives feedback), answered at once."""
    calls, learner = changing(250), make_learner()
    learner._generators["auto"].random(len(calls))
    row_of, chosen = {"a": 0, "b": 1}, []
    for i, prompt in enumerate(calls.prompts):
        decision = learner.decide("auto", calls.contexts[prompt], float(i))
        row = row_of[decision.chosen]
        chosen.append(row)
        record, _ = learner.record_decision(decision, Labels())
        learner.note_outcome(record, outcome_of(calls, decision, row, i))
        if not np.isnan(calls.quality[row, i]):
            learner.record_feedback(record, graded(decision, calls.quality[row, i]))
    pool = make_learner().pools["auto"]
    trace = simulate(pool, calls, rng=rng(1), rate_per_s=0.01)
    assert trace.chosen.tolist() == chosen
    assert bits(pool) == bits(learner.pools["auto"])


def outcome_of(calls, decision, row, i):
    def known(values):
        return None if np.isnan(values[row, i]) else float(values[row, i])

    tokens = known(calls.output_tokens)
    return Outcome(
        decision.decision_id,
        0.0,
        decision.chosen,
        "ok",
        known(calls.latency_s),
        input_tokens=20,
        output_tokens=None if tokens is None else int(tokens),
        cost_usd=known(calls.cost_usd),
    )


def graded(decision, quality):
    return Feedback(decision.decision_id, 0.0, float(quality))


def test_only_a_share_of_the_calls_gives_feedback():
    """A quarter of 2,000: 500 ± 4 standard deviations of 19.4."""
    pool = pool_of(half_life_requests=None)
    trace = simulate(pool, workload(2000), rng=rng(), feedback_share=0.25)
    assert abs(int(trace.graded.sum()) - 500) < 4 * 19.4
    assert pool.heads.weight[0].sum() == trace.graded.sum()
    assert pool.heads.weight[2].sum() == 2000


def test_what_is_not_measured_is_not_learned():
    pool = pool_of()
    simulate(pool, workload(50, quality=NAN, latency_s=NAN, output_tokens=NAN, cost_usd=NAN), rng=rng())
    assert pool.step == 50
    assert pool.heads.weight.sum() == 0.0


def test_calls_that_no_model_may_serve_are_refused():
    """Both models miss the limit on every call: once both are filtered most calls fail, and none of those counts."""
    slow = Constraints(p95_latency_s=0.1, on_infeasible="fail")
    pool, diary = pool_of(constraints=slow), Diary()
    trace = simulate(pool, workload(400, latency_s=9.0), rng=rng(), rate_per_s=0.1, observer=diary)
    refused = trace.chosen == -1
    assert 0 < refused.sum() < 400
    assert pool.step == 400 - refused.sum() == sum(entry[0] == "decided" for entry in diary.entries)
    for values in (trace.propensity, trace.quality, trace.cost_usd, trace.latency_s, trace.probabilities[:, 0]):
        assert np.isnan(values[refused]).all()
        assert not np.isnan(values[~refused]).any()
    filtered = [(call, change.arm) for call, change in trace.changes if change.to_state == "filtered"]
    assert sorted(arm for _, arm in filtered) == [0, 1]
    assert not refused[: max(call for call, _ in filtered) + 1].any()


def test_a_change_is_told_with_the_call_it_came_with():
    """The only model of 'one' gives bad answers only: the diary's changes and the trace's are the same."""
    diary = Diary()
    limited = pool_of(("one",), constraints=LIMITED, objective=Objective())
    calls = workload(100, ("one",), quality=0.0, latency_s=5.0)
    trace = simulate(limited, calls, rng=rng(), rate_per_s=0.1, observer=diary)
    (first, change), *_ = trace.changes
    at = next(i for i, entry in enumerate(diary.entries) if entry[0] == "changed")
    assert change.to_state == "filtered"
    assert diary.entries[at][1] == f"sim-{first}"


@pytest.mark.parametrize(
    ("field", "broken"),
    [
        ("quality", lambda w: w | {"quality": w["quality"][:, 1:]}),
        ("cost_usd", lambda w: w | {"cost_usd": w["cost_usd"][:1]}),
        ("prompts", lambda w: w | {"prompts": w["prompts"] + 3}),
        ("prompts", lambda w: w | {"prompts": w["prompts"] - 1}),
    ],
)
def test_a_workload_that_does_not_fit_together_is_refused(field, broken):
    whole = workload(6)
    parts = {name: getattr(whole, name) for name in Workload.__slots__}
    with pytest.raises(InvalidInput, match=field):
        Workload(**broken(parts))


def test_the_models_must_be_the_pools():
    with pytest.raises(InvalidInput, match="a, b"):
        simulate(pool_of(), workload(3, ("b", "a")), rng=rng())


@pytest.mark.parametrize("given", [{"rate_per_s": 0.0}, {"feedback_delay_s": -1.0}, {"feedback_share": 1.5}])
def test_times_and_shares_must_make_sense(given):
    with pytest.raises(InvalidInput, match="rate"):
        simulate(pool_of(), workload(3), rng=rng(), **given)
