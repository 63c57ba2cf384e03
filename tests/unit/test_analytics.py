"""The analytical log: everything committed, exactly once, whatever dies or stands in the way."""
# ruff: noqa: F811 - a fixture is imported, and an argument of its name is it
# ruff: noqa: ASYNC110, ASYNC220, ASYNC221, S608 - tasks under test tell nobody; other processes may block a test

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import duckdb
import numpy as np
import orjson
import pytest
from copied_events import counts, decision, dumps, log, outcome, outcomes, path, query, store  # noqa: F401 - three are fixtures

from serving import analytics
from serving.analytics import AnalyticalLog
from serving.records import model_event
from serving.sqlite_store import SqliteStore
from serving.store import Event

ROOT = Path(__file__).parents[2]


async def test_ten_thousand_decisions_come_back_as_they_were(path, store, log):
    """Arrays, floats to the last bit, booleans, texts and nulls survive; NaN becomes null."""
    chance = np.random.default_rng(1)
    made = [decision(number, chance) for number in range(10_000)]
    for start in range(0, 10_000, 2_500):
        await store.append(
            [
                Event("decision", d.decision_id, d.ts, dumps(d.to_row() | {"user": "acme", "tags": {"job": "7"}}))
                for d in made[start : start + 2_500]
            ]
        )
    assert await log.flush() == 10_000
    assert (log.position, log.lag_events, log.last_error) == (10_000, 0, None)
    names = [*made[0].to_row(), "seq", "user", "team", "tags"]
    listed = ", ".join(f'"{name}"' for name in names)
    for seq, (was, row) in enumerate(
        zip(made, query(path, f"SELECT {listed} FROM decisions ORDER BY seq"), strict=True), 1
    ):
        got = dict(zip(names, row, strict=True))
        assert got.pop("seq") == seq
        assert [got.pop(name) for name in ("user", "team", "tags")] == ["acme", None, {"job": "7"}]
        np.testing.assert_array_equal(np.array(got["context"], dtype=np.float32), was.context.x)
        expected = orjson.loads(dumps(was.to_row()))
        assert got | {"context": None} == expected | {"context": None}


async def test_every_kind_has_its_table(path, store, log):
    """Missing keys are null, unknown keys are ignored, and seq is the event's."""
    rows = {
        "decision": {"decision_id": "id-1", "chosen": "small", "arms": [], "unheard_of": {"a": [1]}},
        "outcome": {"decision_id": "id-1", "ts": 2.5, "status": "ok", "http_status": 200, "stream": True},
        "feedback": {"decision_id": "id-1", "quality": 0.5, "metrics": {"bleu": 1.5, "odd": None}, "revision": 2},
        "filter_event": {"ts": 3.5, "pool": "auto", "constraint_name": "p95_latency_s", "limit_rate": 0.05},
        "benchmark_result": {"ts": 4.5, "suite": "math", "item_id": "7", "error": "a\nb", "cost_usd": 1e-7},
    }
    await store.append([Event(kind, "id-1", 1.0, dumps(row)) for kind, row in rows.items()])
    await store.append([Event("outcome", "", 1.0, b"{}")])
    assert await log.flush() == 6
    assert log.rejected_events == 0
    assert query(path, "SELECT seq, chosen, arms, context, tags, ts FROM decisions") == [
        (1, "small", [], None, None, None)
    ]
    assert query(path, "SELECT seq, status, ts, http_status, stream FROM outcomes ORDER BY seq") == [
        (2, "ok", 2.5, 200, True),
        (6, None, None, None, None),
    ]
    assert query(path, "SELECT seq, quality, metrics, revision, revises FROM rewards") == [
        (3, 0.5, {"bleu": 1.5, "odd": None}, 2, None)
    ]
    assert query(path, "SELECT seq, ts, constraint_name, limit_rate FROM filter_events") == [
        (4, 3.5, "p95_latency_s", 0.05)
    ]
    assert query(path, "SELECT seq, item_id, error, cost_usd FROM benchmark_results") == [(5, "7", "a\nb", 1e-7)]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 8, 9, 10])
async def test_batches_of_any_length_copy_everything_once(path, store, count):
    log = AnalyticalLog(path, store, batch_events=3)
    await store.append(outcomes(count))
    assert await log.flush() == count
    assert await log.flush() == 0
    await store.append(outcomes(1))
    assert await log.flush() == 1
    assert counts(path) == (count + 1, count + 1, count + 1)
    await log.close()


async def test_inserts_are_bounded_in_bytes(path, store, log):
    """Events of a megabyte each go in two at a time, so that DuckDB's memory stays bounded."""
    big = [outcome(number, error="x" * (1 << 20)) for number in range(5)]
    assert [len(part) for part in analytics._parts(big)] == [2, 2, 1]
    assert [len(part) for part in analytics._parts(outcomes(5))] == [5]
    assert list(analytics._parts([])) == []
    await store.append(big)
    assert await log.flush() == 5
    assert query(path, "SELECT count(*), min(length(error)) FROM outcomes") == [(5, 1 << 20)]


async def test_a_long_backlog_is_copied_in_several_flushes(path, store):
    """One flush is bounded, since readers are kept out while it runs."""
    log = AnalyticalLog(path, store, batch_events=2)
    await store.append(outcomes(50))
    assert [await log.flush() for _ in range(3)] == [40, 10, 0]
    assert counts(path) == (50, 50, 50)
    await log.close()


# Copies three batches of three events and dies in the second's commit, after so many of its calls to DuckDB.
DYING = """
import asyncio, os, sys
from pathlib import Path
from serving.analytics import AnalyticalLog
from serving.sqlite_store import SqliteStore

class Fuse:
    def __init__(self, log, calls):
        self.log, self.calls = log, calls

    def __getattr__(self, name):
        if self.calls == 0:
            os._exit(9)
        self.calls -= 1
        return getattr(self.log, name)

class Dying(AnalyticalLog):
    def _commit(self, log, events):
        if events[-1].seq == 6:
            log = Fuse(log, int(sys.argv[3]))
        super()._commit(log, events)
        if events[-1].seq == 6:
            os._exit(10)

async def main():
    await Dying(Path(sys.argv[2]), SqliteStore(Path(sys.argv[1])), batch_events=3).flush()

asyncio.run(main())
"""


@pytest.mark.parametrize(("calls", "copied"), [(0, 3), (1, 3), (2, 6)])
async def test_a_process_that_dies_around_its_commit_leaves_every_event_once(path, store, calls, copied):
    """The position is in the same transaction as the rows, so neither can be there without the other."""
    await store.append(outcomes(9))
    await store.close()
    store_path = path.parent / "router.sqlite"
    command = [sys.executable, "-c", DYING, str(store_path), str(path), str(calls)]
    ended = subprocess.run(command, cwd=ROOT, check=False, timeout=60)
    assert ended.returncode == (10 if calls == 2 else 9)
    assert counts(path) == (copied, copied, copied)
    again = SqliteStore(store_path)
    log = AnalyticalLog(path, again, batch_events=3)
    assert await log.flush() == 9 - copied
    await log.close()
    await again.close()
    assert counts(path) == (9, 9, 9)


class Interrupted(AnalyticalLog):
    """Fails with `error` right after its n-th commit."""

    commits_left, error = 1, OSError("no space")

    def _commit(self, log, events):
        super()._commit(log, events)
        self.commits_left -= 1
        if self.commits_left == 0:
            raise self.error


@pytest.mark.parametrize("error", [OSError("no space"), duckdb.IOException("no space"), duckdb.FatalException("gone")])
@pytest.mark.parametrize("commits", [1, 2, 3, 4])
async def test_an_error_after_a_commit_copies_nothing_twice(path, store, commits, error):
    log = Interrupted(path, store, batch_events=3)
    log.commits_left, log.error = commits, error
    await store.append(outcomes(10))
    assert await log.flush() == min(10, commits * 3)
    assert (log.failed_flushes, log.last_error) == (1, str(error))
    assert await log.flush() == 10 - min(10, commits * 3)
    assert log.last_error is None
    assert counts(path) == (10, 10, 10)
    await log.close()


async def test_a_reader_in_another_process_delays_the_copy_and_loses_nothing(path, store, log, caplog):
    await store.append(outcomes(2))
    await log.flush()
    reader = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import duckdb, sys; c = duckdb.connect(sys.argv[1], read_only=True); print('open', flush=True); input()",
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with reader:
        assert reader.stdout.readline() == "open\n"
        assert await log.flush() == 0  # nothing is new: the file is not even opened
        assert log.busy_flushes == 0
        await store.append(outcomes(3))
        assert await log.flush() == 0
        assert await log.flush() == 0
        assert (log.busy_flushes, log.failed_flushes, log.lag_events, log.position) == (2, 0, 3, 2)
        reader.communicate("\n")
    assert await log.flush() == 3
    assert log.lag_events == 0
    assert counts(path) == (5, 5, 5)
    assert not caplog.records


async def test_a_reader_in_this_process_delays_the_copy_too(path, store, log):
    await store.append(outcomes(2))
    await log.flush()
    with duckdb.connect(str(path), read_only=True):
        await store.append(outcomes(1))
        assert await log.flush() == 0
        assert (log.busy_flushes, log.failed_flushes) == (1, 0)
    assert await log.flush() == 1


UNFIT = {
    "wrong type": b'{"attempt":"first"}',
    "too large": b'{"attempt":3000000000000}',
    "cut off": b'{"attempt":1',
    "no object": b"[1,2]",
    "empty": b"",
    "not UTF-8": b'{"model":"\xff"}',
    "two rows in one": b'{"attempt":1}\n{"seq":99,"attempt":2}',
    "its own seq": b'{"seq":99,"attempt":1}',
}


@pytest.mark.parametrize("payload", UNFIT.values(), ids=UNFIT.keys())
async def test_an_event_that_does_not_fit_is_set_aside_and_the_rest_goes_on(path, store, log, payload):
    good = outcomes(8)
    await store.append([*good[:5], Event("outcome", "odd", 1.0, payload), *good[5:]])
    assert await log.flush() == 9
    assert (log.rejected_events, log.lag_events, log.failed_flushes) == (1, 0, 0)
    [(seq, kind, kept, error)] = query(path, "FROM rejected")
    assert (seq, kind, kept) == (6, "outcome", payload)
    assert error
    assert query(path, "SELECT list(seq ORDER BY seq), list(attempt ORDER BY seq) FROM outcomes") == [
        ([1, 2, 3, 4, 5, 7, 8, 9], list(range(8)))
    ]
    assert await log.flush() == 0


async def test_space_and_line_breaks_between_tokens_fit(path, store, log):
    await store.append([Event("outcome", "id", 1.0, b'{\n  "attempt": 7,\n  "model": "a\\nb"\n}\n')])
    assert await log.flush() == 1
    assert query(path, "SELECT attempt, model FROM outcomes") == [(7, "a\nb")]


async def test_a_kind_from_a_later_version_is_set_aside(path, store, log):
    await store.append([outcome(1), Event("shadow_run", "id", 1.0, b"{}"), outcome(2)])
    assert await log.flush() == 3
    assert query(path, "SELECT seq, kind FROM rejected") == [(2, "shadow_run")]
    assert query(path, "SELECT count(*) FROM outcomes") == [(2,)]


async def test_a_flood_of_events_that_do_not_fit_is_worked_off_bit_by_bit(path, store, log):
    """A flush sets aside a bounded number, since each costs milliseconds; the lag shows the rest."""
    await store.append([Event("outcome", "odd", 1.0, b"[]") for _ in range(230)] + outcomes(5))
    assert [await log.flush() for _ in range(4)] == [100, 100, 35, 0]
    assert log.rejected_events == 230
    assert query(path, "SELECT count(*), count(DISTINCT seq) FROM rejected") == [(230, 230)]
    assert query(path, "SELECT list(seq ORDER BY seq) FROM outcomes") == [([231, 232, 233, 234, 235],)]


async def test_a_damaged_file_is_reported_once_and_the_service_goes_on(path, store, log, caplog):
    """Moved away, it is made anew from what the store still holds."""
    await store.append(outcomes(4))
    await log.flush()
    path.write_bytes(path.read_bytes()[:10_000])
    await store.append(outcomes(2))
    with caplog.at_level(logging.ERROR):
        assert [await log.flush() for _ in range(3)] == [0, 0, 0]
    assert (log.failed_flushes, log.busy_flushes, log.lag_events) == (3, 0, 2)
    assert str(path) in log.last_error
    assert len(caplog.records) == 1
    assert "2 events wait" in caplog.text
    assert store.healthy
    path.rename(path.with_suffix(".damaged"))
    assert await log.flush() == 6
    assert log.last_error is None
    assert counts(path) == (6, 6, 6)


async def test_the_task_ends_when_cancelled_and_close_copies_the_rest(path, store):
    log = AnalyticalLog(path, store)
    task = asyncio.create_task(log.run(0.0))
    await store.append(outcomes(3))
    async with asyncio.timeout(30):
        while log.lag_events:
            await asyncio.sleep(0)
    task.cancel()  # perhaps in mid-flush
    with suppress(asyncio.CancelledError):
        await task
    await store.append(outcomes(4))
    await log.close()
    assert counts(path) == (7, 7, 7)


async def test_the_task_survives_what_nobody_foresaw(path, store, caplog):
    log = Interrupted(path, store)
    log.error = ZeroDivisionError("surprise")
    await store.append(outcomes(3))
    task = asyncio.create_task(log.run(0.0))
    async with asyncio.timeout(30):
        while not log.failed_flushes:
            await asyncio.sleep(0)
    await store.append(outcomes(2))
    async with asyncio.timeout(30):
        while log.lag_events:
            await asyncio.sleep(0)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
    await log.close()
    assert counts(path) == (5, 5, 5)
    assert "surprise" in caplog.text


async def test_nothing_but_the_log_is_left_in_the_directory(path, store, log):
    await store.append([*outcomes(10), Event("outcome", "odd", 1.0, b"[]")])
    await log.flush()
    assert [file.name for file in path.parent.iterdir() if not file.name.startswith("router")] == ["log.duckdb"]


async def test_a_path_with_a_quote_works(tmp_path, store):
    path = tmp_path / "it's a log.duckdb"
    log = AnalyticalLog(path, store)
    await store.append(outcomes(2))
    assert await log.flush() == 2
    assert counts(path) == (2, 2, 2)
    await log.close()


async def test_models_that_come_and_go_are_changes_of_standing(path, store, log):
    """Without what a replay needs: a definition is no column."""
    added = model_event("model_added", None, "new", definition={"name": "new"}, by="admin")
    joined = model_event("model_added", "auto", "new", accuracy=0.5, samples=3)
    left = model_event("model_removed", "auto", "new")
    await store.append([added, joined, left])
    assert (await log.flush(), log.rejected_events) == (3, 0)
    assert query(path, "SELECT seq, pool, model, reason, to_state FROM filter_events ORDER BY seq") == [
        (1, None, "new", "added", None),
        (2, "auto", "new", "added", None),
        (3, "auto", "new", "removed", None),
    ]
