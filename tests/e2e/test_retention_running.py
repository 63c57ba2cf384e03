"""Retention in the real service: old rows written as it writes them leave both stores, and what is left can be used."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace

import duckdb
import orjson

from serving.analytics import AnalyticalLog
from serving.records import DecisionIds
from serving.sqlite_store import SqliteStore

DAY = 86_400.0
OLD, NEW = 40, 25
ASK = {"model": "auto", "messages": [{"role": "user", "content": "hello"}]}
COUNTS = "SELECT (SELECT count(*) FROM decisions), (SELECT count(*) FROM outcomes), (SELECT count(*) FROM rewards)"


def config(trial, **log):
    return {
        "server": {"feedback_horizon_s": 60.0},
        "auth": {"admin_key": "operator-key", "keys": [{"key": "caller-key", "user": "u"}]},
        "log": {"flush_interval_s": 0.1} | log,
        "models": [trial.model("good"), trial.model("fair")],
        "pools": [{"name": "auto", "models": ["good", "fair"]}],
    }


def rows(data_dir, sql):
    with duckdb.connect(str(data_dir / "log.duckdb"), read_only=True) as log:
        return log.execute(sql).fetchall()


async def calls(service, http, count):
    headers = {"Authorization": "Bearer caller-key"}
    for _ in range(count):
        async with http.post(service.url + "/v1/chat/completions", json=ASK, headers=headers) as response:
            assert response.status == 200
            decision_id = (await response.json())["id"]
        item = {"decision_id": decision_id, "quality": 0.75}
        async with http.post(service.url + "/reward", json=item, headers=headers) as response:
            assert response.status == 200


def aged(events, days, ids):
    """The same calls, made so many days earlier."""
    renamed: dict[str, str] = {}
    for event in events:
        row = orjson.loads(event.payload)
        ts = row["ts"] - days * DAY
        if event.decision_id:
            name = renamed.setdefault(event.decision_id, ids.new(ts))
            row["decision_id"] = name
        else:
            name = ""
        yield replace(event, decision_id=name, ts=ts, payload=orjson.dumps(row | {"ts": ts}))


async def add_old(data_dir, days):
    """What such a service logged so many days ago stands behind what it has now, in both stores."""
    store = SqliteStore(data_dir / "router.sqlite")
    log = AnalyticalLog(data_dir / "log.duckdb", store)
    try:
        known = [event for event in store.read(0, 10_000) if event.kind in ("decision", "outcome", "feedback")]
        await store.append(list(aged(known, days, DecisionIds())))
        await log.flush()
    finally:
        await log.close()
        await store.close()


async def test_old_rows_leave_both_stores_and_what_is_left_is_used(run_service, trial, http, tmp_path, wait_until):
    with run_service(config(trial), tmp_path) as service:
        await calls(service, http, OLD)
        assert service.stop() == 0
    data = service.data_dir
    await add_old(data, 40)
    assert rows(data, COUNTS) == [(2 * OLD,) * 3]

    with run_service(config(trial, retention_days=30), tmp_path) as service:
        await calls(service, http, NEW)
        admin = {"Authorization": "Bearer operator-key"}

        async def told():
            async with http.get(f"{service.url}/admin/events?kind=change", headers=admin) as response:
                events = (await response.json()).get("events", ()) if response.status == 200 else ()
                return [event for event in events if event["subject"] == "log"]

        deadline = time.monotonic() + 20
        while not (found := await told()):
            assert time.monotonic() < deadline
            await asyncio.sleep(0.2)
        (event,) = found
        counted = {"decisions": OLD, "outcomes": OLD, "rewards": OLD}
        assert event["after"].items() >= counted.items()
        assert (event["what"], event["title"], event["by"]) == ("rows_removed", "log rows removed", None)
        async with http.get(f"{service.url}/metrics", headers=admin) as response:
            text = await response.text()
        for table, count in counted.items():
            assert f'pointsman_log_removed_rows_total{{table="{table}"}} {float(count)}' in text
        async with http.get(f"{service.url}/admin/usage?by=user", headers=admin) as response:
            assert (await response.json())["total"]["calls"] == OLD + NEW
        assert service.stop() == 0

    assert rows(data, COUNTS) == [(OLD + NEW,) * 3]
    orphans = "SELECT count(*) FROM {} WHERE decision_id NOT IN (SELECT decision_id FROM decisions)"
    assert rows(data, f"{orphans.format('outcomes')} UNION ALL {orphans.format('rewards')}") == [(0,), (0,)]
    _evaluated(str(data / "log.duckdb"), tmp_path)


def _evaluated(log, tmp_path):
    """So few decisions are too few to judge by, which the exit code 3 says; they are those that are left."""
    options = ["-c", str(tmp_path / "pointsman.yaml")]
    code, text = command("replay", log, *options, "--pool", "auto", "--policy", "uniform")
    assert (code, f"of {OLD + NEW} decisions" in text) == (3, True), text
    code, text = command("report", log, *options, "-o", str(tmp_path / "report.html"))
    assert code == 0, text


def command(*arguments):
    made = [sys.executable, "-m", "serving", *arguments]
    done = subprocess.run(made, capture_output=True, text=True, check=False, timeout=120)
    return done.returncode, done.stdout + done.stderr


async def test_events_past_the_horizon_leave_the_operational_store(run_service, trial, http, tmp_path, wait_until):
    """Once a snapshot and the log have them; decisions that still wait for feedback stay."""
    with run_service(config(trial), tmp_path) as service:
        await calls(service, http, OLD)
        assert service.stop() == 0
    await add_old(service.data_dir, 1)
    with run_service(config(trial) | {"store": {"snapshot_every_events": 1}}, tmp_path) as service:
        await calls(service, http, 1)

        def old_left():
            with closing(sqlite3.connect(f"file:{service.data_dir}/router.sqlite?mode=ro", uri=True)) as store:
                sql = "SELECT count(*) FROM events WHERE ts < ?"
                return store.execute(sql, [time.time() - DAY / 2]).fetchone()[0]

        await wait_until(lambda: old_left() == 0, 20)
        kept = {event["decision_id"] for event in service.events("decision")}
        assert len(kept) == OLD + 1
