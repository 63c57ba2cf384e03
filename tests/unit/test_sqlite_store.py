"""What is particular to the store on SQLite: the file, the thread, and how both fail."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
from pathlib import Path

import pytest

from serving.sqlite_file import SCHEMA_VERSION
from serving.sqlite_store import _WITHOUT_FEEDBACK, SqliteStore
from serving.store import Event, StoreFailed, StoreUnusable


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "router.sqlite"


def events(count: int, size: int = 20) -> list[Event]:
    return [Event("outcome", f"id-{n}", 1.0, b"x" * size) for n in range(count)]


class Counting(SqliteStore):
    """Counts its transactions."""

    commits = 0

    def _write(self, batch):
        self.commits += 1
        return super()._write(batch)


async def test_appends_of_one_turn_of_the_loop_share_a_commit(path):
    store = Counting(path)
    await asyncio.gather(*(store.append(events(1)) for _ in range(100)))
    assert store.commits == 1
    await store.close()


async def test_commits_keep_their_distance(path):
    """Whatever is appended within the interval after a commit waits for the next one."""
    store = Counting(path, commit_interval_s=3600.0)
    await store.append(events(1))
    waiting = [store.append(events(1)) for _ in range(10)]
    done, _ = await asyncio.wait(waiting, timeout=0.05)
    assert (done, store.commits) == (set(), 1)
    await store.flush()  # does not keep the distance
    assert all(future.done() for future in waiting)
    assert store.commits == 2
    await store.close()


@pytest.mark.parametrize("count", [1, 31, 32, 33, 64, 65, 1000])
async def test_a_batch_of_any_size_is_one_transaction(path, count):
    store = Counting(path)
    await store.append(events(count))
    assert [e.seq for e in store.read(0, 2000)] == list(range(1, count + 1))
    assert store.commits == 1
    await store.close()


async def test_a_write_that_waits_does_not_hold_up_the_loop(path):
    store = SqliteStore(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")  # as a backup tool might
    future = store.append(events(1))
    for _ in range(50):
        await asyncio.sleep(0.001)
        assert store.find("id-0") == []
    later = store.append(events(1))
    assert not future.done()
    other.execute("ROLLBACK")
    other.close()
    async with asyncio.timeout(10):
        await future
        await later  # appended while the first was being written
    assert len(store.find("id-0")) == 2
    await store.close()


async def test_a_full_disk_fails_everyone_who_waits_and_leaves_nothing_half_written(path, caplog):
    store = SqliteStore(path)
    await store.append(events(3))
    (pages,) = store._writer.execute("PRAGMA page_count").fetchone()
    store._writer.execute(f"PRAGMA max_page_count = {pages + 5}")
    too_much = store.append(events(100, size=1_000))
    await asyncio.sleep(0)
    behind = store.append(events(1))
    snapshot = store.save_snapshot(store.position, b"state")
    with caplog.at_level(logging.ERROR):
        with pytest.raises(StoreFailed, match="full") as failure:
            await too_much
        assert isinstance(failure.value.cause, sqlite3.OperationalError)
        for future in (behind, snapshot):
            with pytest.raises(StoreFailed, match="full"):
                await future
    assert "101 events are lost" in caplog.text
    assert not store.healthy
    for refused in (store.append, store.append_nowait):
        with pytest.raises(StoreFailed, match="full"):
            refused(events(1))
    with pytest.raises(StoreFailed):
        await store.prune(0.0, 0, 1)
    with pytest.raises(StoreFailed):
        await store.flush()
    assert len(store.read(0, 100)) == 3  # reading goes on
    await store.close()

    again = SqliteStore(path)
    assert [e.seq for e in again.read(0, 100)] == [1, 2, 3]
    assert (again.position, again.latest_snapshot()) == (3, None)
    await again.append(events(1))
    await again.close()


async def test_a_file_that_turned_read_only_fails_with_its_cause(path):
    store = SqliteStore(path)
    store._writer.execute("PRAGMA query_only = 1")
    with pytest.raises(StoreFailed, match=r"router\.sqlite failed: attempt to write a readonly database"):
        await store.append(events(1))
    assert not store.healthy
    await store.close()


async def test_a_file_of_a_newer_schema_is_refused(path):
    await SqliteStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    with pytest.raises(StoreUnusable, match="schema is version 2 and this program knows up to 1; upgrade"):
        SqliteStore(path)


async def test_another_programs_database_is_refused_and_left_alone(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE theirs (a)")
    with pytest.raises(StoreUnusable, match="belongs to another program"):
        SqliteStore(path)
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]


async def test_a_file_that_is_no_database_is_refused(path):
    path.write_bytes(b"not a database" * 1000)
    with pytest.raises(StoreUnusable, match="not a database; restore it from a backup or move it away"):
        SqliteStore(path)


async def test_a_truncated_file_is_refused_or_fails_on_reading(path):
    store = SqliteStore(path)
    await store.append(events(2000, size=500))
    await store.close()
    path.write_bytes(path.read_bytes()[: 8192 * 6])
    with pytest.raises(StoreUnusable, match="malformed"):
        SqliteStore(path)


async def test_damage_inside_the_file_is_reported_by_the_read_that_meets_it(path):
    store = SqliteStore(path)
    await store.append(events(2000, size=500))
    await store.close()
    data = bytearray(path.read_bytes())
    middle = len(data) // 2 // 8192 * 8192
    data[middle : middle + 3 * 8192] = b"\xff" * (3 * 8192)
    path.write_bytes(data)
    store = SqliteStore(path)
    with pytest.raises(StoreFailed, match=r"reading .*router\.sqlite failed: .*malformed"):
        store.read(0, 10_000)
    await store.close()


async def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(StoreUnusable, match="its directory must exist and be writable"):
        SqliteStore(tmp_path / "missing" / "router.sqlite")


async def test_a_second_opener_is_kept_out_until_the_first_closes(path):
    store = SqliteStore(path)
    with pytest.raises(StoreUnusable, match="has it open"):
        SqliteStore(path)
    await store.append(events(1))
    await store.close()
    again = SqliteStore(path)
    assert again.position == 1
    await again.close()


async def test_only_two_snapshots_are_kept(path):
    store = SqliteStore(path)
    for number in range(5):
        await store.append(events(1))
        await store.save_snapshot(store.position, b"%d" % number)
    await store.close()
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT * FROM snapshots ORDER BY seq").fetchall() == [(4, b"3"), (5, b"4")]


async def test_closing_ends_the_thread_and_folds_the_wal_into_the_file(path):
    store = SqliteStore(path)
    await store.append(events(10))
    await store.close()
    assert not store._thread.is_alive()
    assert sorted(file.name for file in path.parent.iterdir()) == ["router.sqlite", "router.sqlite.lock"]


async def test_pruned_space_is_used_again(path):
    store = SqliteStore(path)
    sizes = []
    for _ in range(6):
        await store.append(events(500, size=1500))
        await store.prune(1e9, store.position, 500)
        (pages,) = store._finder.execute("PRAGMA page_count").fetchone()
        sizes.append(pages)
    assert sizes[-1] <= sizes[1]
    await store.close()


async def test_a_rotten_event_fails_the_store_loudly_and_not_the_thread(path):
    store = SqliteStore(path)
    with pytest.raises(StoreFailed):
        await store.append([Event("outcome", "id-1", 1.0, object())])
    assert not store.healthy
    await store.close()


async def test_missing_feedback_is_found_by_index_also_in_an_older_file(path):
    """A file made before the index existed gets it on opening; no look ever walks the whole log."""
    store = SqliteStore(path)
    await store.append([Event("outcome", "a", 1.0, b"{}")])
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("DROP INDEX outcomes_by_time")
    store = SqliteStore(path)
    assert store.without_feedback((0.0, 0), 2.0, 10) == (["a"], (1.0, 1))
    await store.close()
    with contextlib.closing(sqlite3.connect(path)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {_WITHOUT_FEEDBACK}", (0.0, 0, 2.0, 10)).fetchall()
    steps = [row[3] for row in plan]
    assert any("USING INDEX outcomes_by_time" in step for step in steps)
    assert not any(step.startswith("SCAN") or "TEMP B-TREE" in step for step in steps)
