"""`kill -9` of the service at random moments, under load with feedback."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import statistics
import time

import duckdb
import numpy as np
from killed_service import Traffic, assert_recorded_once, assert_same_learning, folded, post_all, snapshot_of

ROUNDS = int(os.environ.get("POINTSMAN_CHAOS_KILLS", "50"))
SEED = 20_240_725
LOOKED_BACK = 3_000  # items of feedback that are posted again after each restart; in the end all are looked up


def config(trial):
    names = ("good", "fair", "f500")
    pool = {
        "name": "auto",
        "models": list(names),
        "constraints": {"max_error_rate": 0.2, "min_accuracy": 0.3, "accuracy_evidence": "feedback"},
        "budget": {"usd_per_request": 0.0001},
        "policy": {"half_life_requests": 200, "exploration_floor": 0.1},
    }
    return {
        "models": [trial.model(name) for name in names],
        "pools": [pool],
        "budgets": [{"name": "all", "scope": "all", "usd": 1e6, "per": "total"}],
        "store": {"snapshot_every_events": 700},
        "log": {"flush_interval_s": 0.2},
    }


def spent_usd(data_dir):
    """What the outcomes in the store cost."""
    with contextlib.closing(sqlite3.connect(f"file:{data_dir}/router.sqlite?mode=ro", uri=True)) as store:
        sql = "SELECT sum(json_extract(CAST(payload AS TEXT), '$.cost_usd')) FROM events WHERE kind = 'outcome'"
        return store.execute(sql).fetchone()[0] or 0.0


async def test_kill_9_at_random_moments(run_service, trial, http, case, tmp_path):
    """No decision or feedback that was acknowledged is lost, none is applied twice, the ledger equals the outcomes."""
    rng = np.random.default_rng(SEED)
    decisions, feedback, ready_s = [], {}, []
    for number in range(ROUNDS + 1):
        began = time.monotonic()
        with run_service(config(trial), tmp_path) as service:
            ready_s.append(time.monotonic() - began)
            await _assert_nothing_lost(http, service, decisions, feedback)
            await _assert_ledger_exact(http, service)
            if number == ROUNDS:
                assert service.stop() == 0
                break
            traffic = asyncio.create_task(Traffic(service.url, rng, decisions, feedback).run())
            await asyncio.sleep(0.2 + 1.0 * rng.random())
            service.kill()
            await traffic
    assert "the snapshot" not in service.log
    events = service.events()
    assert_recorded_once(events, decisions)
    recorded = {event["decision_id"] for event in events if event["kind"] == "feedback"}
    acknowledged = {key for key in feedback if isinstance(key, str)}
    case.made, case.answered = len(decisions), len(acknowledged)
    case.lost = len(acknowledged - recorded)
    assert case.lost == 0
    _, learned = snapshot_of(service.data_dir)
    assert_same_learning(learned["auto"], folded(config(trial), events)["auto"])
    _assert_copied_once(service.data_dir, events)
    case.happened = (
        f"{ROUNDS} kills, {len(decisions):,} decisions and {len(acknowledged):,} of their feedback acknowledged, all"
        f" there once; learned state equals the fold of {len(events):,} events; ready in"
        f" {statistics.median(ready_s):.1f} s (at most {max(ready_s):.1f} s)"
    )


async def _assert_nothing_lost(http, service, decisions, feedback):
    """Acknowledged feedback is a duplicate when it is posted again; decisions without any take it."""
    acknowledged = {key: value for key, value in feedback.items() if isinstance(key, str)}
    certain = [
        {"decision_id": name, "quality": quality}
        for name, quality in list(acknowledged.items())[-LOOKED_BACK:]
        if feedback[name, "tried"] == quality  # else a revision was on its way when the power failed
    ]
    assert set(await post_all(http, service.url, certain)) <= {"duplicate"}
    open_ = [name for name in decisions if name not in acknowledged]
    again = [{"decision_id": name, "quality": feedback.get((name, "tried"), 0.5)} for name in open_]
    assert set(await post_all(http, service.url, again)) <= {"recorded", "duplicate"}
    for item in again:
        feedback[item["decision_id"]] = feedback[item["decision_id"], "tried"] = item["quality"]


async def _assert_ledger_exact(http, service):
    async with http.get(f"{service.url}/admin/budgets") as response:
        (budget,) = (await response.json())["budgets"]
    (counter,) = budget["counters"]
    assert counter["reserved"] == 0
    assert abs(counter["spent"] - spent_usd(service.data_dir)) < 1e-9


def _assert_copied_once(data_dir, events):
    """The analytical log has every event of a call once."""
    with contextlib.closing(duckdb.connect(str(data_dir / "log.duckdb"), read_only=True)) as log:
        for kind, table in (("decision", "decisions"), ("outcome", "outcomes"), ("feedback", "rewards")):
            copied = [seq for (seq,) in log.execute(f"SELECT seq FROM {table} ORDER BY seq").fetchall()]  # noqa: S608
            assert copied == [event["seq"] for event in events if event["kind"] == kind]
