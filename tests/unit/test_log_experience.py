"""What a warm start learns from the service's own log: each row of the model that served it, and nothing twice."""

from __future__ import annotations

import duckdb
import numpy as np
import orjson
import pytest

from bandit import Feedback, Outcome, Prompt
from bandit.errors import InvalidInput
from bandit.features import Features
from serving.analytics import AnalyticalLog
from serving.imputation import IMPUTED
from serving.log_experience import read_log
from serving.records import Labels
from serving.store import Event


@pytest.fixture
def learner(make_learner):
    return make_learner()


@pytest.fixture
def call(learner, held_store):
    """One call with its outcomes, (model, status, more) each, and its feedback; returns its decision."""

    def call(*outcomes, quality=None, metrics=None, http_status=None):
        decision = learner.decide("auto", Prompt("which?", category="math"), 1000.0)
        record, _ = learner.record_decision(decision, Labels())
        for attempt, (model, status) in enumerate(outcomes):
            known = {"latency_s": 0.5, "output_tokens": 10, "input_tokens": 10, "cost_usd": 0.001}
            more = {"attempt": attempt, "http_status": http_status} | (known if status == "ok" else {"latency_s": None})
            learner.note_outcome(record, Outcome(decision.decision_id, 1001.0, model, status, **more))
        if quality is not None:
            learner.record_feedback(record, Feedback(decision.decision_id, 1002.0, quality, metrics or {}))
        return record

    return call


@pytest.fixture
def read(learner, held_store, tmp_path):
    async def read(*, take_imputed=True, features=None, pool="auto"):
        held_store.commit()
        log = AnalyticalLog(tmp_path / "log.duckdb", held_store)
        await log.close()
        assert log.rejected_events == 0
        features = features or learner.pools["auto"].features
        return read_log(tmp_path / "log.duckdb", pool, ["a", "b"], features, take_imputed=take_imputed)

    return read


def known(values):
    return values[~np.isnan(values)].tolist()


async def test_each_call_teaches_the_model_that_served_it(call, read):
    call(("a", "ok"), quality=1.0)
    call(("b", "ok"))
    logged = await read()
    assert [known(logged.experience[m].quality) for m in "ab"] == [[1.0], []]
    assert [known(logged.experience[m].latency_s) for m in "ab"] == [[0.5], [0.5]]
    assert known(logged.experience["a"].output_tokens) == [10.0]
    assert known(logged.experience["b"].cost_usd) == [0.001]
    assert len(logged.contexts) == 2
    assert logged.contexts[0].category == "math"
    assert "2 decisions" in logged.source


async def test_after_a_fallback_the_failed_model_learns_its_failure_and_the_other_its_grade(call, read):
    call(("a", "error"), ("b", "ok"), quality=0.75)
    logged = await read()
    assert [known(logged.experience[m].quality) for m in "ab"] == [[0.0], [0.75]]
    assert known(logged.experience["a"].latency_s) == []
    assert "1 decisions" in logged.source


async def test_what_the_caller_caused_teaches_nothing(call, read):
    call(("a", "error"), http_status=400)
    call(("a", "cancelled"))
    call(("b", "ok"), quality=1.0)
    logged = await read()
    assert known(logged.experience["b"].quality) == [1.0]
    assert "a" not in logged.experience


async def test_of_revised_feedback_the_last_value_counts(learner, call, read):
    record = call(("a", "ok"), quality=0.25)
    learner.record_feedback(record, Feedback(record.decision.decision_id, 1003.0, 1.0, {}, 1, 0.25))
    assert known((await read()).experience["a"].quality) == [1.0]


@pytest.mark.parametrize(("take", "expected"), [(True, [0.5]), (False, [])])
async def test_assumed_feedback_counts_only_where_it_is_asked_for(call, read, take, expected):
    call(("a", "ok"), quality=0.5, metrics={IMPUTED: 1.0})
    assert known((await read(take_imputed=take)).experience["a"].quality) == expected


async def test_a_graded_call_whose_outcome_nobody_told_teaches_its_grade(call, read):
    record = call(quality=0.5)
    assert known((await read()).experience[record.decision.chosen].quality) == [0.5]


async def test_benchmark_results_teach_by_their_category(held_store, read):
    rows = [("a", 1.0, None), ("b", 0.0, None), ("stranger", 1.0, None), ("a", 0.0, "no answer")]
    for model, quality, error in rows:
        row = {"suite": "s", "item_id": "1", "category": "math", "model": model, "quality": quality, "latency_s": 2.0}
        held_store.append_nowait(
            [Event("benchmark_result", "", 1.0, orjson.dumps(row | {"ts": 1.0, "cost_usd": 0.1, "error": error}))]
        )
    row = {"model": "b", "category": "math", "quality": 0.5, "output_tokens": 7, "error": None}
    held_store.append_nowait([Event("benchmark_result", "", 1.0, orjson.dumps(row))])
    features = Features(["math"], text=None)
    logged = await read(features=features)
    assert [sorted(known(logged.experience[m].quality)) for m in "ab"] == [[1.0], [0.0, 0.5]]
    assert known(logged.experience["a"].latency_s) == [2.0]
    assert known(logged.experience["a"].cost_usd) == [0.1]
    assert known(logged.experience["b"].output_tokens) == [7.0]
    np.testing.assert_array_equal(logged.contexts[0].x, features.extract(Prompt(category="math")).x)


async def test_benchmark_results_of_a_log_of_the_second_version_are_read(held_store, read, tmp_path):
    """It says nothing about tokens."""
    row = {"model": "a", "category": "math", "quality": 1.0, "latency_s": 2.0, "cost_usd": 0.25, "error": None}
    held_store.append_nowait([Event("benchmark_result", "", 1.0, orjson.dumps(row))])
    await read()
    with duckdb.connect(str(tmp_path / "log.duckdb")) as log:
        for column in ("run", "input_tokens", "output_tokens"):
            log.execute(f"ALTER TABLE benchmark_results DROP COLUMN {column}")
        log.execute("UPDATE schema_version SET version = 2")
    logged = read_log(tmp_path / "log.duckdb", "auto", ["a"], Features(["math"], text=None), take_imputed=True)
    assert known(logged.experience["a"].cost_usd) == [0.25]
    assert known(logged.experience["a"].output_tokens) == []


async def test_decisions_with_other_features_are_named_and_not_learned(call, read):
    call(("a", "ok"), quality=1.0)
    with pytest.raises(InvalidInput, match=r"have features \S+ \(1\); the pool has 2/none/c1-"):
        await read(features=Features(["math"], text=None))
    with pytest.raises(InvalidInput, match="nothing of 'other'"):
        await read(pool="other")


async def test_another_database_is_no_log(tmp_path):
    with duckdb.connect(str(tmp_path / "other.duckdb")) as other:
        other.execute("CREATE TABLE t (x INTEGER)")
    with pytest.raises(InvalidInput, match="not a log of this service"):
        read_log(tmp_path / "other.duckdb", "auto", ["a"], Features(), take_imputed=True)
