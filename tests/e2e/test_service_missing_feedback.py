"""Feedback that never comes, in the real program: assumed once, durably, also across `kill -9`, and replaced."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections import Counter

import duckdb
import numpy as np
import pytest

from bandit.snapshot import loads

CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hello there"}]}
WAIT_S = 1
ROUND_S = 20.0  # the housekeeping looks every five seconds


def config_of(trial):
    pool = {"name": "auto", "models": ["good", "fair"], "feedback": {"missing": 0.25, "wait_s": WAIT_S}}
    return {"models": [trial.model("good"), trial.model("fair")], "pools": [pool], "log": {"flush_interval_s": 0.1}}


async def call(http, service, n=1):
    async def one():
        async with http.post(service.url + "/v1/chat/completions", json=CHAT) as response:
            return (await response.json())["id"]

    return await asyncio.gather(*(one() for _ in range(n)))


async def post(http, service, item):
    async with http.post(service.url + "/reward", json=item) as response:
        return (await response.json())["status"]


async def test_it_is_assumed_then_replaced_and_logged_as_what_it_is(run_service, trial, http, wait_until, tmp_path):
    with run_service(config_of(trial), tmp_path) as service:
        silent, graded, late = await call(http, service, 3)
        assert await post(http, service, {"decision_id": graded, "quality": 1.0}) == "recorded"
        await wait_until(lambda: len(service.events("feedback")) == 3, ROUND_S)
        for decision_id in (silent, late):
            (event,) = service.events("feedback", decision_id)
            assert (event["payload"]["quality"], event["payload"]["metrics"]) == (0.25, {"imputed": 1.0})
        assert await post(http, service, {"decision_id": late, "quality": 0.75}) == "recorded"
        assert await post(http, service, {"decision_id": late, "quality": 0.75}) == "duplicate"
        assert service.stop() == 0
    with duckdb.connect(str(service.data_dir / "log.duckdb"), read_only=True) as log:
        rows = log.execute("SELECT decision_id, quality, metrics, revises FROM rewards ORDER BY seq").fetchall()
    assert [(quality, bool(metrics), revises) for name, quality, metrics, revises in rows if name == late] == [
        (0.25, True, None),
        (0.75, False, 0.25),
    ]
    assert [quality for name, quality, *_ in rows if name == graded] == [1.0]


async def test_nothing_is_assumed_twice_however_often_the_service_is_killed(
    run_service, trial, http, wait_until, tmp_path
):
    """Killed in mid-work twice; in the end each call has one assumed quality, and a replay learns as many."""
    ids = []
    with run_service(config_of(trial), tmp_path) as service:
        for _ in range(6):
            ids += await call(http, service, 100)
        await wait_until(lambda: service.events("feedback"), ROUND_S)
        service.kill()
    with run_service(config_of(trial), tmp_path) as service:
        before = len(service.events("feedback"))
        await wait_until(lambda: len(service.events("feedback")) > min(before, 599), ROUND_S)
        service.kill()
    with run_service(config_of(trial), tmp_path) as service:
        await wait_until(lambda: len(service.events("feedback")) >= 600, ROUND_S)
        assert service.stop() == 0
    counts = Counter(event["decision_id"] for event in service.events("feedback"))
    assert counts == Counter(ids)
    assert learned_qualities(service.data_dir) == pytest.approx(600, rel=1e-9)


def learned_qualities(data_dir):
    """How many graded answers the last snapshot holds, forgetting undone (half-life 10,000 requests)."""
    with contextlib.closing(sqlite3.connect(data_dir / "router.sqlite")) as connection:
        (payload,) = connection.execute("SELECT payload FROM snapshots ORDER BY seq DESC LIMIT 1").fetchone()
    pool = loads(payload)["pools"]["auto"]
    weights = pool["heads"]["weight"][0].sum()
    of_each = np.exp2((np.arange(600) - pool["heads"]["origin"]) / 10_000)  # what a decision's lesson weighs
    return weights / of_each.mean()
