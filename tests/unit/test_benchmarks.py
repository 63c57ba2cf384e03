"""The benchmark desk on a slow disk: each result is recorded once, durable before it is acknowledged, and replayed."""

from __future__ import annotations

import asyncio

import orjson
import pytest
from test_learner import drive, learned

from serving.benchmarks import BenchmarkDesk, Recorded, parse_results
from serving.errors import InvalidFields, UnknownModel
from serving.metrics import Metrics
from serving.records import BenchmarkResult
from serving.roster import Roster
from serving.settings import ModelSettings
from serving.store import StoreFailed, StoreFull

NOW = 1_000.0


@pytest.fixture
def make_known(make_learner):
    """A learner of a pool of `a` and `b`; there is also a model `lone` in no pool."""

    def make_known(**more):
        models = [ModelSettings(name=name, endpoint="http://127.0.0.1:9/v1") for name in ("a", "b", "lone")]
        learner = make_learner(roster=Roster(models, {"auto": ("a", "b")}, {}), **more)
        object.__setattr__(learner.pools["auto"].constraints, "accuracy_evidence", "both")
        return learner

    return make_known


@pytest.fixture
def learner(make_known):
    return make_known()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def desk(learner, held_store, metrics):
    return BenchmarkDesk(learner, held_store, metrics)


def results(numbers, model="a", quality=1.0, **more):
    return [BenchmarkResult("s", "r1", str(n), model, quality=quality, **more) for n in numbers]


async def turns():
    for _ in range(10):
        await asyncio.sleep(0)


async def started(coroutine):
    task = asyncio.ensure_future(coroutine)
    await turns()
    return task


async def test_results_and_their_duplicates_are_acknowledged_when_they_are_durable(desk, held_store):
    first = await started(desk.accept(results(range(5)), NOW))
    second = await started(desk.accept(results(range(3, 8)), NOW))
    assert (first.done(), second.done()) == (False, False)
    held_store.commit(5)
    await turns()
    assert (first.done(), second.done()) == (True, False)
    held_store.commit()
    assert (await first, await second) == (Recorded(5, 0), Recorded(3, 2))
    assert await desk.accept(results(range(8)), NOW) == Recorded(0, 8)  # at once: they are durable
    assert len(held_store.committed) == 8


async def test_the_same_key_with_another_grade_changes_nothing(desk, learner, held_store):
    """Also within one post. Another run, suite, model or item is another result."""
    posting = await started(desk.accept([*results([1]), *results([1], quality=0.0)], NOW))
    held_store.commit()
    assert await posting == Recorded(1, 1)
    before = learned(learner)
    assert await desk.accept(results([1], quality=0.0), NOW) == Recorded(0, 1)
    assert learned(learner) == before
    named = ["s", "r1", "1", "a"]
    others = [["t", "r1", "1", "a"], ["s", "r2", "1", "a"], ["s", "r1", "2", "a"], ["s", "r1", "1", "b"]]
    shifted = [["s", "r11", "", "a"], ["sr", "1", "1", "a"]]
    keys = {BenchmarkResult(*fields).key for fields in (named, *others, *shifted)}
    assert len(keys) == 7


async def test_an_unknown_model_anywhere_means_that_nothing_is_recorded(desk, held_store):
    with pytest.raises(UnknownModel, match="did you mean 'lone'") as caught:
        await desk.accept([*results([1]), *results([2], model="lonee")], NOW)
    assert caught.value.param == "results[1].model"
    assert held_store.position == 0


async def test_a_result_is_logged_as_it_came_and_errors_are_no_evidence(desk, learner, held_store):
    """Nor is a result of a model in no pool evidence for anybody."""
    before = learned(learner)
    failed = [BenchmarkResult("s", "r1", "1", "a", "math", error="timeout", latency_s=60.0)]
    posting = await started(desk.accept([*failed, *results([1], model="lone")], NOW))
    held_store.commit()
    assert await posting == Recorded(2, 0)
    assert learned(learner) == before
    row = orjson.loads(held_store.committed[0].payload)
    assert row == {
        "ts": NOW,
        "suite": "s",
        "run": "r1",
        "item_id": "1",
        "model": "a",
        "category": "math",
        "quality": None,
        "latency_s": 60.0,
        "cost_usd": None,
        "input_tokens": None,
        "output_tokens": None,
        "error": "timeout",
    }


@pytest.mark.parametrize("snapshot_every", [7, 10**9])
async def test_a_restart_learns_the_same_from_the_log(desk, make_known, learner, held_store, snapshot_every):
    """Results between calls, with bad ones that filter the model; and its duplicates are known again."""
    learner._snapshot_every = snapshot_every
    drive(learner, 20)
    posting = await started(desk.accept(results(range(40), quality=0.0, category="math"), NOW))
    drive(learner, 20)
    held_store.commit()
    await posting
    assert learner.pools["auto"].filters.states[0] == "filtered"
    assert any(e.kind == "filter_event" and b'"proved violating"' in e.payload for e in held_store.committed)
    restarted = make_known()
    restarted.recover()
    assert learned(restarted) == learned(learner)
    again = BenchmarkDesk(restarted, held_store, Metrics())
    assert await again.accept(results(range(40), quality=0.0), NOW) == Recorded(0, 40)


async def test_results_of_a_model_that_left_are_replayed_and_teach_nobody(desk, make_known, learner, held_store):
    from serving.records import model_event
    from serving.roster import REMOVED

    posting = await started(desk.accept(results(range(3), model="b"), NOW))
    learner.record([model_event(REMOVED, "auto", "b")])
    later = await started(desk.accept(results(range(3, 6), model="b"), NOW))
    held_store.commit()
    assert (await posting, await later) == (Recorded(3, 0), Recorded(3, 0))
    restarted = make_known()
    restarted.recover()
    assert learned(restarted) == learned(learner)


async def test_a_full_store_takes_what_it_can_and_the_rest_is_new_next_time(desk, held_store):
    posting = await started(desk.accept(results(range(2)), NOW))
    held_store.full = True
    with pytest.raises(StoreFull):
        await desk.accept(results(range(5)), NOW)
    held_store.full = False
    again = await started(desk.accept(results(range(5)), NOW))
    held_store.commit()
    assert (await posting, await again) == (Recorded(2, 0), Recorded(3, 2))


async def test_who_waits_is_told_when_the_disk_breaks(desk, held_store):
    posting = await started(desk.accept(results(range(3)), NOW))
    held_store.fail()
    with pytest.raises(StoreFailed):
        await posting


async def test_a_caller_who_goes_away_cancels_no_one_elses_wait(desk, held_store):
    first = await started(desk.accept(results([1]), NOW))
    second = await started(desk.accept(results([1]), NOW))
    first.cancel()
    await asyncio.sleep(0)
    held_store.commit()
    assert await second == Recorded(0, 1)


async def test_what_became_of_results_is_counted_by_model(desk, held_store, metrics):
    posting = await started(desk.accept([*results([1, 2]), *results([1]), *results([1], "b", None, error="x")], NOW))
    held_store.commit()
    await posting
    (family,) = metrics.benchmark_results.collect()
    counted = {(s.labels["model"], s.labels["status"]): s.value for s in family.samples if s.name.endswith("_total")}
    assert counted == {("a", "graded"): 2.0, ("a", "duplicate"): 1.0, ("b", "failed"): 1.0}


RESULT = {"item_id": "1", "model": "a", "quality": 1.0}
BAD = [
    ({"results": [RESULT]}, {"suite", "run"}),
    ({"suite": "s", "run": "r", "results": []}, {"results"}),
    ({"suite": "s", "run": "r", "results": [RESULT] * 1001}, {"results"}),
    ({"suite": "s\n", "run": "r" * 257, "results": [RESULT], "more": 1}, {"suite", "run", "more"}),
    ([RESULT], {""}),
]
BAD_RESULTS = [
    ({"quality": 1.1}, "quality"),
    ({"quality": "1"}, "quality"),
    ({"quality": None}, ""),
    ({"error": "timeout"}, ""),
    ({"quality": None, "error": "x" * 65}, "error"),
    ({"quality": None, "error": ""}, "error"),
    ({"item_id": 7}, "item_id"),
    ({"item_id": ""}, "item_id"),
    ({"model": "a\x00"}, "model"),
    ({"category": "c" * 65}, "category"),
    ({"latency_s": -1.0}, "latency_s"),
    ({"cost_usd": float("inf")}, "cost_usd"),
    ({"input_tokens": 1.5}, "input_tokens"),
    ({"output_tokens": -1}, "output_tokens"),
    ({"reason": "x"}, "reason"),
]


@pytest.mark.parametrize(("body", "paths"), BAD)
def test_what_is_wrong_with_a_post_is_said_with_its_path(body, paths):
    with pytest.raises(InvalidFields) as caught:
        parse_results(body)
    assert {problem["param"] for problem in caught.value.problems} == paths


@pytest.mark.parametrize(("wrong", "field"), BAD_RESULTS)
def test_what_is_wrong_with_a_result_is_said_with_its_path(wrong, field):
    body = {"suite": "s", "run": "r", "results": [RESULT, RESULT | wrong]}
    with pytest.raises(InvalidFields) as caught:
        parse_results(body)
    assert [problem["param"] for problem in caught.value.problems] == [f"results[1].{field}".rstrip(".")]


def test_what_may_be_missing_may_also_be_null():
    missing = {"suite": "s", "run": "r", "results": [RESULT]}
    optional = ("category", "latency_s", "cost_usd", "input_tokens", "output_tokens", "error")
    null = missing | {"results": [RESULT | dict.fromkeys(optional)]}
    assert parse_results(missing) == parse_results(null) == [BenchmarkResult("s", "r", "1", "a", quality=1.0)]
