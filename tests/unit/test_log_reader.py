"""The log in a worker that does not fill it: it reads what another process has written, and waits while that writes."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import duckdb
import pytest

from serving.log_errors import LogUnavailable
from serving.workers.log_reader import LogReader

WRITER = """
import sys, duckdb
held = duckdb.connect(sys.argv[1])
held.execute("CREATE TABLE IF NOT EXISTS outcomes (seq BIGINT)")
held.execute("INSERT INTO outcomes VALUES (1)")
print("held", flush=True)
sys.stdin.readline()
held.close()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "log.duckdb"


@pytest.fixture
async def reader(path, held_store):
    reader = LogReader(path, held_store)
    yield reader
    await reader.close()


@pytest.fixture
def writer(path):
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline() == b"held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def count(log):
    return log.execute("SELECT count(*) FROM log.outcomes").fetchall()[0][0]


async def test_a_read_waits_for_the_process_that_writes(reader, writer):
    read = asyncio.create_task(reader.read(count, 20.0))
    await asyncio.sleep(0.2)
    assert not read.done()
    writer.stdin.write(b"\n")
    writer.stdin.flush()
    assert await read == 1


async def test_it_does_not_wait_for_ever(reader, writer):
    with pytest.raises(LogUnavailable, match="in use by another process"):
        await reader.read(count, 20.0)


async def test_who_closes_it_waits_for_no_writer(path, held_store, writer):
    reader = LogReader(path, held_store)
    read = asyncio.create_task(reader.read(count, 20.0))
    await asyncio.sleep(0.1)
    await reader.close()
    with pytest.raises(LogUnavailable, match="stopping"):
        await read


async def test_it_never_writes(path, reader):
    assert await reader.flush() == 0
    assert not path.exists()
    with pytest.raises(LogUnavailable, match="it alone changes it"):
        await reader.change(lambda log: log.execute("CREATE TABLE log.x (y INT)"))
    with pytest.raises(LogUnavailable, match="nothing is in the log yet"):
        await reader.read(count, 20.0)
    duckdb.connect(str(path)).close()
    with pytest.raises(LogUnavailable, match="cannot be read"):  # it is there, and has no such table: no need to wait
        await reader.read(count, 20.0)
    assert reader.lag_events == 0
