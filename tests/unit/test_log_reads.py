"""Reading the analytical log inside the service: bounded, never beside a writer, and nothing left behind."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import duckdb
import orjson
import pytest

from serving.analytics import AnalyticalLog
from serving.errors import InvalidRequest
from serving.log_errors import LogTooLarge, LogUnavailable
from serving.log_export import Excerpt, LogExport
from serving.store import Event

HOLD = """
import sys, duckdb
held = duckdb.connect(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""
LONG = "SELECT count(*) FROM range(1000000) a, range(1000000) b WHERE a.range + b.range = 7"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.duckdb"


@pytest.fixture
async def log(path, held_store):
    log = AnalyticalLog(path, held_store)
    yield log
    await log.close()


@pytest.fixture
def put(held_store):
    def put(count, kind="outcome", **row):
        for i in range(count):
            held_store.append_nowait([Event(kind, "", 0.0, orjson.dumps({"ts": float(i), "model": "a"} | row))])
        held_store.commit()

    return put


def count(log):
    return log.execute("SELECT count(*) FROM log.outcomes").fetchall()[0][0]


async def test_a_read_sees_what_was_committed_before_it(log, put):
    assert await log.read(count, 20.0) == 0
    put(3)
    assert await log.read(count, 20.0) == 3
    assert log.lag_events == 0


async def test_a_read_writes_nothing(log, path):
    with pytest.raises(LogUnavailable):
        await log.read(lambda reader: reader.execute("CREATE TABLE log.mine (x INTEGER)"), 20.0)
    await log.flush()
    with duckdb.connect(str(path), read_only=True) as reader:
        assert ("mine",) not in reader.execute("SHOW TABLES").fetchall()


async def test_a_log_that_is_gone_is_said_to_be_and_the_next_read_finds_it_again(log, path, put):
    put(1)
    await log.flush()
    moved = path.rename(path.with_name("moved"))
    with pytest.raises(LogUnavailable, match="still there"):
        await log.read(count, 20.0)
    moved.rename(path)
    assert await log.read(count, 20.0) == 1


async def test_a_log_that_another_process_writes_to_is_in_use(log, path, put):
    put(1)
    await log.flush()
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:  # noqa: ASYNC220
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(LogUnavailable, match="in use by another process"):
            await log.read(count, 20.0)
        holder.stdin.close()
    assert await log.read(count, 20.0) == 1


async def test_a_read_that_takes_too_long_is_ended_and_copying_goes_on(log, put):
    with pytest.raises(LogUnavailable, match=r"took longer than 0\.2 s"):
        await log.read(lambda reader: reader.execute(LONG).fetchall(), 0.2)
    put(2)
    assert await log.flush() == 2


async def test_closing_ends_a_read_and_those_that_wait(path, held_store):
    log, began = AnalyticalLog(path, held_store), threading.Event()

    def work(reader):
        began.set()
        return reader.execute(LONG).fetchall()

    reading = [asyncio.create_task(log.read(work, 300.0)) for _ in range(2)]
    await asyncio.to_thread(began.wait, 20.0)
    async with asyncio.timeout(20.0):
        await log.close()
    for task in reading:
        with pytest.raises(LogUnavailable, match="stopping"):
            await task


async def test_only_so_many_may_wait(log):
    gate = threading.Event()
    waiting = [asyncio.create_task(log.read(lambda _: gate.wait(20.0), 60.0)) for _ in range(4)]
    await asyncio.sleep(0)
    with pytest.raises(LogUnavailable, match="4 others"):
        await log.read(count, 20.0)
    waiting[0].cancel()
    gate.set()
    assert await asyncio.gather(*waiting[1:]) == [True] * 3
    assert await log.read(count, 20.0) == 0


async def test_an_excerpt_is_the_tables_rows_between_two_times(log, put, tmp_path):
    put(10, latency_s=0.5)
    export = LogExport(log, tmp_path)
    for excerpt, expected in (
        (Excerpt("outcomes"), list(range(10))),
        (Excerpt("outcomes", 2.0, 5.0), [2, 3, 4]),
        (Excerpt("outcomes", 8.0), [8, 9]),
        (Excerpt("outcomes", None, 1.0), [0]),
        (Excerpt("outcomes", 99.0), []),
        (Excerpt("rewards"), []),
    ):
        with await export.open(excerpt) as file:
            (tmp_path / "copy.parquet").write_bytes(file.read())
        rows = duckdb.sql(f"SELECT ts FROM '{tmp_path}/copy.parquet'").fetchall()  # noqa: S608
        assert [int(ts) for (ts,) in rows] == expected
        assert sorted(found.name for found in tmp_path.iterdir()) == ["copy.parquet", "log.duckdb"]


async def test_an_excerpt_has_the_tables_columns_and_types(log, put, tmp_path):
    put(1, "decision", arms=["a"], probabilities=[1.0], tags={"k": "v"}, context=[0.5], feasible=[True])
    with await LogExport(log, tmp_path).open(Excerpt("decisions")) as file:
        (tmp_path / "copy.parquet").write_bytes(file.read())
    described = duckdb.sql(f"DESCRIBE SELECT * FROM '{tmp_path}/copy.parquet'").fetchall()  # noqa: S608
    with duckdb.connect(str(tmp_path / "log.duckdb"), read_only=True) as reader:
        assert [row[:2] for row in described] == [row[:2] for row in reader.execute("DESCRIBE decisions").fetchall()]


async def test_too_many_rows_are_refused_and_leave_no_file(log, put, tmp_path):
    put(4)
    export = LogExport(log, tmp_path, most_rows=3)
    with pytest.raises(LogTooLarge, match="outcomes has 4 such rows, and one answer at most 3: narrow since and until"):
        await export.open(Excerpt("outcomes"))
    with await export.open(Excerpt("outcomes", 1.0)) as file:
        assert file.read(4) == b"PAR1"
    assert [found.name for found in tmp_path.iterdir()] == ["log.duckdb"]


async def test_a_file_left_by_a_service_that_was_killed_goes_at_the_start(log, tmp_path):
    (tmp_path / "log-export.parquet").write_bytes(b"half")
    LogExport(log, tmp_path)
    assert not (tmp_path / "log-export.parquet").exists()


async def test_a_worker_that_starts_leaves_alone_what_another_is_writing(log, tmp_path):
    (tmp_path / "log-export.parquet").write_bytes(b"half")
    (tmp_path / "log-export-1.parquet").write_bytes(b"half")
    LogExport(log, tmp_path, index=1)
    assert [found.name for found in tmp_path.glob("*.parquet")] == ["log-export.parquet"]


@pytest.mark.parametrize(
    ("arguments", "param"), [(("rejected",), "table"), (("",), "table"), (("outcomes", 2.0, 2.0), "since")]
)
def test_what_is_no_excerpt_is_named(arguments, param):
    with pytest.raises(InvalidRequest) as caught:
        Excerpt(*arguments)
    assert caught.value.param == param
