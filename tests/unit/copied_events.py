"""Events to copy into an analytical log, what stands in it then, and the fixtures for that: a store and its log."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import duckdb
import numpy as np
import orjson
import pytest

from bandit.types import Context, Decision
from serving.analytics import AnalyticalLog
from serving.sqlite_store import SqliteStore
from serving.store import Event


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "log.duckdb"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(tmp_path / "router.sqlite", synchronous="normal")
    yield store
    await store.close()


@pytest.fixture
async def log(path: Path, store: SqliteStore) -> AsyncIterator[AnalyticalLog]:
    log = AnalyticalLog(path, store)
    yield log
    await log.close()


def dumps(row: dict) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_SERIALIZE_NUMPY)


def outcome(number: int, **row: object) -> Event:
    name = f"id-{number}"
    return Event("outcome", name, 1.0, dumps({"decision_id": name, "ts": 1.0, "attempt": number} | row))


def outcomes(count: int) -> list[Event]:
    return [outcome(number) for number in range(count)]


def query(path: Path, sql: str) -> list[tuple]:
    with duckdb.connect(str(path), read_only=True) as connection:
        return connection.execute(sql).fetchall()


def counts(path: Path) -> tuple[int, int, int]:
    """(rows, different seqs, position) of a log of outcomes."""
    return query(path, "SELECT count(*), count(DISTINCT seq), (FROM log_position) FROM outcomes")[0]


def decision(number: int, chance: np.random.Generator) -> Decision:
    quality, latency = chance.random(3), chance.random(3)
    quality[number % 3] = np.nan
    return Decision(
        decision_id=f"chatcmpl-{number:08x}",
        ts=1764000000.0 + number / 7,
        pool="auto",
        mode="bandit",
        step=number,
        context=Context(chance.random(5, dtype=np.float32), "text-1", number * 10, None if number % 2 else "math"),
        policy_version="thompson-1",
        arms=("small", "lärge", "x'y\"z"),
        feasible=np.array([True, number % 2 == 0, False]),
        probabilities=chance.dirichlet(np.ones(3)),
        chosen="lärge",
        propensity=chance.random() * 1e-9,
        predicted_quality=quality,
        predicted_cost_usd=np.full(3, np.nan),
        predicted_latency_s=latency,
        pacer_multiplier=0.1,
        infeasible=number % 5 == 0,
    )
