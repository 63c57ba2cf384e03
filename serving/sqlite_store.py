"""The operational store on SQLite in WAL mode: one thread owns the one write connection and commits in groups.

The event loop owns all other state and hands over one batch at a time, so appending takes no lock: it extends a
list. This module never looks into a payload and never knows what is learned from one.
"""
# ruff: noqa: D102, S608 - the contract's docstrings are in serving.store; statements are built from constants

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import os
import queue
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Literal

from serving.sqlite_file import last_seq, lock_file, open_reader, open_writer
from serving.store import Event, StoreClosed, StoreError, StoreFailed, StoreFull, StoreUnusable

__all__ = ["SqliteStore"]

_EVENT = "kind, decision_id, ts, payload, seq"  # the order of Event's fields
_FIELDS = 5
# One statement for many rows steps, and so drops and retakes the interpreter lock, once instead of once a row.
_ROWS_PER_INSERT = 32
# By the index on `ts`, in which rows of one time come by `seq`; 3 µs an outcome.
_WITHOUT_FEEDBACK = """
    SELECT ts, seq, decision_id,
           EXISTS (SELECT 1 FROM events f WHERE f.decision_id = o.decision_id AND f.kind = 'feedback')
    FROM events o WHERE kind = 'outcome' AND (ts, seq) > (?, ?) AND ts <= ? ORDER BY ts, seq LIMIT ?
"""
_SNAPSHOTS_KEPT = 2
_TASK_LIMIT = 16  # snapshots and prunings waiting; each is one caller's, who waits for it
_ORPHAN_CHECK_S = 1.0

_logger = logging.getLogger(__name__)
_Task = tuple[Callable[[sqlite3.Connection], Any], "asyncio.Future[Any]"]


class _Batch:
    """What one transaction writes: flat rows (five values an event), then tasks; and who waits for it."""

    __slots__ = ("rows", "tasks", "waiters")

    def __init__(self) -> None:
        self.rows: list[int | float | str | bytes] = []
        self.tasks: list[_Task] = []
        self.waiters: list[asyncio.Future[None]] = []


class SqliteStore:
    """`serving.store.Store` in one file. Construct it on the running event loop; opening blocks for milliseconds.

    `synchronous`: `full` survives loss of power, `normal` only that of the process. `queue_limit`: events that
    may wait to be written. `commit_interval_s`: commits start at least this far apart, since a commit costs more
    than the events in it; the first after a pause starts at once. `linger_s`: how long `append_nowait` may wait
    for a commit to share. Raises StoreUnusable.
    """

    def __init__(
        self,
        path: Path,
        *,
        synchronous: Literal["full", "normal"] = "full",
        queue_limit: int = 20_000,
        commit_interval_s: float = 0.002,
        linger_s: float = 0.02,
    ) -> None:
        self._path = path
        self._queue_limit, self._commit_interval_s, self._linger_s = queue_limit, commit_interval_s, linger_s
        self._loop = asyncio.get_running_loop()
        with ExitStack() as opened:  # on an error, closes what is open by then
            self._lock_file = lock_file(path)
            opened.callback(os.close, self._lock_file)
            try:
                self._writer = opened.enter_context(closing(open_writer(path, synchronous)))
                self._finder = opened.enter_context(closing(open_reader(path)))
                self._reader = opened.enter_context(closing(open_reader(path)))
                self._position = last_seq(self._writer)
            except sqlite3.Error as error:
                raise StoreUnusable(str(path), f"{error}; restore it from a backup or move it away") from error
            opened.pop_all()
        self._reader_lock = threading.Lock()
        self._batch = _Batch()
        self._pending = 0
        self._in_flight = self._urgent = self._timer_armed = self._lingering = self._closed = False
        self._next_commit_at = 0.0
        self._error: Exception | None = None
        self._jobs: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._write_batches, name="pointsman-store")
        self._thread.start()

    # Appending: on the event loop.

    @property
    def position(self) -> int:
        return self._position

    @property
    def placed_position(self) -> int:
        return self._position

    @property
    def name(self) -> str:
        return self._path.name

    @property
    def pending(self) -> int:
        return self._pending

    @property
    def healthy(self) -> bool:
        return self._error is None and not self._closed

    def append(self, events: Sequence[Event], placed: Callable[[], None] | None = None) -> asyncio.Future[None]:
        self._take(events)
        future: asyncio.Future[None] = self._loop.create_future()
        self._batch.waiters.append(future)
        self._hasten()
        if placed is not None:
            placed()
        return future

    def append_nowait(self, events: Sequence[Event], placed: Callable[[], None] | None = None) -> None:
        self._take(events)
        if not self._lingering:  # one timer serves all that linger: those that came late wait less
            self._lingering = True
            self._loop.call_later(self._linger_s, self._end_linger)
        if placed is not None:
            placed()

    def save_snapshot(self, seq: int, payload: bytes) -> asyncio.Future[None]:
        return self._submit(functools.partial(_save_snapshot, seq=seq, payload=payload))

    async def prune(self, before_ts: float, up_to_seq: int, limit: int) -> int:
        deleted: int = await self._submit(
            functools.partial(_prune, before_ts=before_ts, up_to_seq=up_to_seq, limit=limit)
        )
        return deleted

    async def flush(self) -> None:
        self._check_open()
        await self._flush()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(StoreFailed):  # reported when it happened, to everyone who waited
            if self._error is None:
                await self._flush()
        self._finder.close()
        with self._reader_lock:
            self._reader.close()
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)
        os.close(self._lock_file)

    # Reading.

    def find(self, decision_id: str) -> list[Event]:
        if not decision_id:
            return []
        try:
            rows = self._finder.execute(
                f"SELECT {_EVENT} FROM events WHERE decision_id = ? ORDER BY seq", (decision_id,)
            ).fetchall()
        except UnicodeEncodeError:  # a lone surrogate: no decision is called that
            return []
        except sqlite3.Error as error:
            raise self._read_failure(error) from error
        return [Event(*row) for row in rows]

    def read(self, after_seq: int, limit: int) -> list[Event]:
        sql = f"SELECT {_EVENT} FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
        with self._reader_lock:
            try:
                rows = self._reader.execute(sql, (after_seq, limit)).fetchall()
            except sqlite3.Error as error:
                raise self._read_failure(error) from error
        return [Event(*row) for row in rows]

    def without_feedback(
        self, after: tuple[float, int], up_to_ts: float, limit: int
    ) -> tuple[list[str], tuple[float, int]]:
        with self._reader_lock:
            try:
                rows = self._reader.execute(_WITHOUT_FEEDBACK, (*after, up_to_ts, limit)).fetchall()
            except sqlite3.Error as error:
                raise self._read_failure(error) from error
        found = dict.fromkeys(decision_id for _, _, decision_id, graded in rows if not graded)
        return list(found), (rows[-1][:2] if rows else after)

    def latest_snapshot(self) -> tuple[int, bytes] | None:
        with self._reader_lock:
            try:
                row: tuple[int, bytes] | None = self._reader.execute(
                    "SELECT seq, payload FROM snapshots ORDER BY seq DESC LIMIT 1"
                ).fetchone()
            except sqlite3.Error as error:
                raise self._read_failure(error) from error
        return row

    # Handing over: on the event loop. `_in_flight`: the thread has a batch, and `_finish` will hand over the next.

    def _check_open(self) -> None:
        if self._error is not None:
            raise StoreFailed(f"writing {self._path}", self._error)
        if self._closed:
            raise StoreClosed

    def _take(self, events: Sequence[Event]) -> None:
        if self._error is not None or self._closed:
            self._check_open()
        if self._pending + len(events) > self._queue_limit:
            raise StoreFull(self._pending, self._queue_limit)
        seq, rows = self._position, self._batch.rows
        for event in events:
            seq += 1
            rows += (seq, event.kind, event.decision_id, event.ts, event.payload)
        self._position = seq
        self._pending += len(events)

    def _submit(self, work: Callable[[sqlite3.Connection], Any]) -> asyncio.Future[Any]:
        self._check_open()
        if len(self._batch.tasks) >= _TASK_LIMIT:
            raise StoreFull(len(self._batch.tasks), _TASK_LIMIT)
        future: asyncio.Future[Any] = self._loop.create_future()
        self._batch.tasks.append((work, future))
        self._hasten()
        return future

    async def _flush(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._batch.waiters.append(future)
        self._urgent = True
        self._hand_over()
        await future

    def _hasten(self) -> None:
        self._urgent = True
        if not self._in_flight and not self._timer_armed:
            self._timer_armed = True
            # A timer even when it is due now: it groups what this turn of the loop still appends.
            self._loop.call_at(self._next_commit_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_armed = False
        self._hand_over()

    def _end_linger(self) -> None:
        self._lingering = False
        self._urgent = True
        self._hand_over()

    def _hand_over(self) -> None:
        batch = self._batch
        if self._in_flight or not (batch.rows or batch.waiters or batch.tasks):
            return
        self._batch, self._in_flight, self._urgent = _Batch(), True, False
        self._next_commit_at = self._loop.time() + self._commit_interval_s
        self._jobs.put(batch)

    def _finish(self, batch: _Batch, results: list[Any], error: Exception | None) -> None:
        self._in_flight = False
        if error is not None:
            self._fail(batch, error)
            return
        self._pending -= len(batch.rows) // _FIELDS
        for future in batch.waiters:
            if not future.done():  # its waiter may have gone
                future.set_result(None)
        for (_, future), result in zip(batch.tasks, results, strict=True):
            if not future.done():
                future.set_result(result)
        if self._urgent:
            self._hasten()

    def _fail(self, batch: _Batch, error: Exception) -> None:
        self._error = error
        waiting, self._batch = self._batch, _Batch()
        _logger.error("writing %s failed, %d events are lost: %s", self._path, self._pending, error)
        for part in (batch, waiting):
            for future in itertools.chain(part.waiters, (future for _, future in part.tasks)):
                if not future.done():
                    future.set_exception(StoreFailed(f"writing {self._path}", error))

    def _read_failure(self, error: sqlite3.Error) -> StoreError:
        return StoreClosed() if self._closed else StoreFailed(f"reading {self._path}", error)

    # Writing: on the store's own thread, which owns `_writer`.

    def _write_batches(self) -> None:
        while True:
            try:
                batch = self._jobs.get(timeout=_ORPHAN_CHECK_S)
            except queue.Empty:
                if threading.main_thread().is_alive():
                    continue
                break  # the program ended without closing the store: do not keep its process alive
            if batch is None:
                break
            results: list[Any] = []
            error: Exception | None = None
            try:
                results = self._write(batch)
            except Exception as caught:  # noqa: BLE001 - the thread's boundary; who waits is told
                error = caught
                with suppress(sqlite3.Error):
                    self._writer.rollback()
            with suppress(RuntimeError):  # the loop was closed with the write under way
                self._loop.call_soon_threadsafe(self._finish, batch, results, error)
        self._writer.close()

    def _write(self, batch: _Batch) -> list[Any]:
        rows, step = batch.rows, _ROWS_PER_INSERT * _FIELDS
        if len(rows) <= step and not batch.tasks:
            if rows:
                self._writer.execute(_insert(len(rows) // _FIELDS), rows)  # by itself one transaction
            return []
        self._writer.execute("BEGIN IMMEDIATE")
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            self._writer.execute(_insert(len(part) // _FIELDS), part)
        results = [work(self._writer) for work, _ in batch.tasks]
        self._writer.execute("COMMIT")
        return results


@functools.cache  # at most _ROWS_PER_INSERT of them
def _insert(count: int) -> str:
    return "INSERT INTO events VALUES " + ",".join(["(?,?,?,?,?)"] * count)


def _save_snapshot(connection: sqlite3.Connection, *, seq: int, payload: bytes) -> None:
    connection.execute("INSERT OR REPLACE INTO snapshots VALUES (?, ?)", (seq, payload))
    connection.execute(
        "DELETE FROM snapshots WHERE seq NOT IN (SELECT seq FROM snapshots ORDER BY seq DESC LIMIT ?)",
        (_SNAPSHOTS_KEPT,),
    )


def _prune(connection: sqlite3.Connection, *, before_ts: float, up_to_seq: int, limit: int) -> int:
    # Only the oldest `limit` are looked at. Searching on for more would read the whole file whenever little is old.
    oldest = "SELECT seq, ts FROM events WHERE seq <= ? ORDER BY seq LIMIT ?"
    connection.execute("UPDATE high_water SET seq = max(seq, (SELECT coalesce(max(seq), 0) FROM events))")
    return connection.execute(
        f"DELETE FROM events WHERE seq IN (SELECT seq FROM ({oldest}) WHERE ts < ?)",
        (up_to_seq, limit, before_ts),
    ).rowcount
