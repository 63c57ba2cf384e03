"""The analytical log: copies committed events into a DuckDB file, in batches and exactly once.

The file is held only while a flush copies, because DuckDB lets nobody read beside a writer. All of it runs on one
worker thread: nothing on the request path ever waits for it, and the service goes on when it cannot be written.
It never knows where events come from or what is learned from them; a payload's keys are its table's columns.
"""
# ruff: noqa: S608 - statements are built from this file's own constants

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import duckdb

from serving.log_errors import LogUnavailable
from serving.log_schema import MIGRATIONS, SCHEMA_VERSION, TABLES
from serving.store import Event, Store, StoreError

__all__ = ["IN_USE", "SCHEMA_VERSION", "AnalyticalLog", "LogUnusable", "why_unreadable"]

# Through a file of JSON lines a decision costs 9 µs; as one JSON parameter 20 µs, by executemany 580 µs.
_READ = (
    "read_json(?, format = 'newline_delimited', columns = {}, maximum_object_size = 4194304)"  # a buffer takes twice it
)
_INSERTS = {
    kind: f"INSERT INTO log.{table} BY NAME SELECT * FROM {_READ.format(columns)}"
    for kind, (table, columns) in TABLES.items()
}
_TABLE_OF = {kind: table for kind, (table, _) in TABLES.items()}
_COPIED = " UNION ALL ".join(
    f"SELECT '{name}', ts FROM log.{name} WHERE seq = $seq AND ts IS NOT NULL" for name in dict(TABLES.values())
)
_REJECT = "INSERT INTO log.rejected VALUES (?, ?, ?, ?)"
_BATCHES_PER_FLUSH = 20  # then the file is released, so that a long backlog does not keep readers out
_BYTES_PER_INSERT = 2 << 20  # 10 MB at once overran a memory limit of 64 MB
_REJECTED_PER_FLUSH = 100  # each is found by halving its batch, which costs milliseconds
# Raised for values that do not fit, or a kind from a later version. All else (no space) is no fault of the row.
_MISFITS = (duckdb.InvalidInputException, duckdb.DataError, KeyError)
_MOST_READS = 4  # under way or waiting; copying waits for them
_READ_MEMORY_MB = 256  # of an instance of its own, which goes when the read is over
_T = TypeVar("_T")
IN_USE = ("Could not set lock", "already attached")  # what DuckDB says: by another process; within this one

_logger = logging.getLogger(__name__)


class LogUnusable(Exception):
    """`path` cannot be used as the analytical log, for `reason`."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot use {path} as the analytical log: {reason}")
        self.path, self.reason = path, reason


class AnalyticalLog:
    """Fills the file at `path` from `store`, of which it uses `read` and `position`. No method raises for the file.

    Plain counters for metrics: `copied_events`, `rejected_events` (they are in table `rejected`), `busy_flushes`
    (somebody was reading the file; tried again next time), `failed_flushes`; `last_error` says why the last one
    failed, None after a success. `memory_limit_mb` bounds DuckDB; `batch_events` one transaction.
    """

    def __init__(self, path: Path, store: Store, *, batch_events: int = 2_000, memory_limit_mb: int = 64) -> None:
        self._path, self._store, self._batch_events = path, store, batch_events
        self._lines = path.with_name(f"{path.name}.lines")
        self._config: dict[str, str | bool | int | float | list[str]] = {
            "threads": 1,
            "memory_limit": f"{memory_limit_mb}MB",
            "temp_directory": f"{path}.tmp",
            "autoinstall_known_extensions": False,  # JSON is built in; never fetch anything
            "autoload_known_extensions": False,
        }
        # Attaching the file to an instance that stays costs 10 ms a flush; opening it as its own, 28 ms.
        self._instance: duckdb.DuckDBPyConnection | None = None
        # One thread of our own: flushes never overlap, and the allocator keeps one arena.
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pointsman-log")
        self._position: int | None = None
        self.copied_events = self.rejected_events = self.busy_flushes = self.failed_flushes = 0
        self.last_error: str | None = None
        self._reads: set[asyncio.Future[Any]] = set()
        self._closing = False
        self._reader: duckdb.DuckDBPyConnection | None = None

    @property
    def position(self) -> int:
        """The seq up to which events are known to be in the file; 0 before the first flush."""
        return self._position or 0

    @property
    def lag_events(self) -> int:
        """How many of the store's events are not in the file yet."""
        return max(0, self._store.position - self.position)

    async def run(self, interval_s: float) -> None:
        """Flush every `interval_s` until cancelled."""
        while True:
            await asyncio.sleep(interval_s)
            try:
                await self.flush()
            except Exception:  # the task's boundary
                self.failed_flushes += 1
                _logger.exception("copying to %s failed", self._path)

    async def flush(self) -> int:
        """Copy what is committed, up to a bound, and say how many events that were; 0 if the file is in use."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, self._flush)

    async def read(self, work: Callable[[duckdb.DuckDBPyConnection], _T], timeout_s: float) -> _T:
        """What `work` makes of the file, attached read-only as `log`; on the worker thread, after a flush.

        A caller who goes away does not end it, `timeout_s` and `close` do. Raises LogUnavailable where the file is
        missing, in use by another process or unreadable, where time or memory does not suffice, or others wait already.
        """
        if len(self._reads) >= _MOST_READS:
            raise LogUnavailable(f"{len(self._reads)} others are reading the log; try again later")
        job = asyncio.get_running_loop().run_in_executor(self._executor, self._read, work, timeout_s)
        self._reads.add(job)
        job.add_done_callback(self._read_done)
        return await asyncio.shield(job)

    async def change(self, work: Callable[[duckdb.DuckDBPyConnection], _T]) -> _T:
        """What `work` makes of the file, attached as `log`, in one transaction; on the worker thread.

        A caller who is cancelled waits for it all the same. Raises LogUnavailable, and then nothing was changed.
        """
        job = asyncio.get_running_loop().run_in_executor(self._executor, self._change, work)
        try:
            return await asyncio.shield(job)
        except asyncio.CancelledError:
            await asyncio.wait([job])
            raise

    def _read_done(self, job: asyncio.Future[Any]) -> None:
        self._reads.discard(job)
        if not job.cancelled():
            job.exception()  # its caller was told, or has gone

    async def close(self) -> None:
        """Flush a last time, after one that may be under way; a read ends. The store must still be open."""
        self._closing = True
        while self._reads:  # an interrupt between two statements is lost
            with suppress(duckdb.Error):
                if (reader := self._reader) is not None:
                    reader.interrupt()
            await asyncio.wait(self._reads, timeout=0.05)
        await self.flush()
        await asyncio.get_running_loop().run_in_executor(self._executor, self._release)
        self._executor.shutdown()

    # From here on: on the worker thread.

    def _flush(self) -> int:
        before = self.copied_events
        try:
            if self._position is None or self._store.read(self._position, 1):  # else leave the file alone
                with self._attached() as log:
                    self._position = self._prepare(log)
                    self._catch_up(log)
            self.last_error = None
        except (duckdb.Error, OSError, StoreError, LogUnusable) as error:
            self._note(error)
        return self.copied_events - before

    def _read(self, work: Callable[[duckdb.DuckDBPyConnection], _T], timeout_s: float) -> _T:
        self._flush()
        if self._closing:
            raise LogUnavailable("the service is stopping")
        if self._position is None:
            raise LogUnavailable(f"the log cannot be read: {self.last_error or 'it is in use by another process'}")
        try:
            return self._look(work, timeout_s)
        except (duckdb.Error, OSError) as error:
            raise LogUnavailable(why_unreadable(error, timeout_s)) from None

    def _look(self, work: Callable[[duckdb.DuckDBPyConnection], _T], timeout_s: float) -> _T:
        """What `work` makes of the file as it is; raises as DuckDB does."""
        with duckdb.connect(":memory:", config=self._config | {"memory_limit": f"{_READ_MEMORY_MB}MB"}) as reader:
            timer = threading.Timer(timeout_s, reader.interrupt)
            reader.execute(f"ATTACH {_quoted(self._path)} AS log (TYPE duckdb, READ_ONLY)")
            self._reader = reader
            timer.start()
            try:
                return work(reader)
            finally:
                self._reader = None
                timer.cancel()
                timer.join()  # it must not interrupt what is closed

    def _change(self, work: Callable[[duckdb.DuckDBPyConnection], _T]) -> _T:
        try:
            with self._attached() as log:
                self._position = self._prepare(log)
                log.begin()
                found = work(log)
                log.commit()
                return found
        except (duckdb.Error, OSError, StoreError, LogUnusable) as error:
            self._note(error)
            raise LogUnavailable(f"the log cannot be changed: {error}") from None

    def _note(self, error: Exception) -> None:
        text = str(error)
        if any(sign in text for sign in IN_USE):
            self.busy_flushes += 1
            return
        self.failed_flushes += 1
        if text != self.last_error:  # say it once, not every interval
            _logger.error("writing %s failed, %d events wait: %s", self._path, self.lag_events, text)
        self.last_error = text

    @contextmanager
    def _attached(self) -> Iterator[duckdb.DuckDBPyConnection]:
        if self._instance is None:
            self._instance = duckdb.connect(":memory:", config=self._config)
        instance = self._instance
        instance.execute(f"ATTACH {_quoted(self._path)} AS log (TYPE duckdb)")
        try:
            yield instance
            instance.execute("DETACH log")  # writes a checkpoint, and lets readers in
        except BaseException:
            self._release()  # after an error DuckDB may refuse to go on; this lets go of the file, too
            raise
        finally:
            self._lines.unlink(missing_ok=True)

    def _release(self) -> None:
        if self._instance is not None:
            self._instance.close()
            self._instance = None

    def _prepare(self, log: duckdb.DuckDBPyConnection) -> int:
        """Create the tables in a new file, bring an older one up to date. Returns the position."""
        tables = log.execute("SELECT table_name FROM duckdb_tables() WHERE database_name = 'log'").fetchall()
        if not tables:
            self._create(log)
        elif ("schema_version",) not in tables:
            raise LogUnusable(self._path, "it belongs to another program")
        (version,) = log.execute("SELECT version FROM log.schema_version").fetchall()[0]
        if version > SCHEMA_VERSION:
            raise LogUnusable(
                self._path, f"its schema is version {version} and this program knows up to {SCHEMA_VERSION}; upgrade"
            )
        for older in range(version, SCHEMA_VERSION):
            self._migrate(log, older)
        position = int(log.execute("SELECT seq FROM log.log_position").fetchall()[0][0])
        if position > self._store.position:
            raise LogUnusable(
                self._path,
                f"it holds events up to {position} and the store ends at {self._store.position}: it was filled"
                " from another store; move it away",
            )
        if self._position is None:
            self._check_same(log, position)
        return position

    def _check_same(self, log: duckdb.DuckDBPyConnection, position: int) -> None:
        """The last event copied is the store's, too: a store that began anew may have grown past the log since."""
        found = [event for event in (self._store.read(position - 1, 1) if position else ()) if event.seq == position]
        copied = log.execute(_COPIED, {"seq": position}).fetchone()
        if found and copied is not None and copied != (_TABLE_OF.get(found[0].kind), found[0].ts):
            reason = f"its event {position} is not the store's: it was filled from another store; move it away"
            raise LogUnusable(self._path, reason)

    def _create(self, log: duckdb.DuckDBPyConnection) -> None:
        log.begin()
        for table, columns in dict(TABLES.values()).items():
            listed = ", ".join(f'"{name}" {kind}' for name, kind in columns.items())
            log.execute(f"CREATE TABLE log.{table} ({listed})")
        log.execute("CREATE TABLE log.rejected (seq BIGINT, kind VARCHAR, payload BLOB, error VARCHAR)")
        log.execute("CREATE TABLE log.log_position (seq BIGINT)")
        log.execute("INSERT INTO log.log_position VALUES (0)")
        log.execute("CREATE TABLE log.schema_version (version INTEGER)")
        log.execute("INSERT INTO log.schema_version VALUES (?)", [SCHEMA_VERSION])
        log.commit()

    def _migrate(self, log: duckdb.DuckDBPyConnection, version: int) -> None:
        log.begin()
        log.execute(MIGRATIONS[version])
        log.execute("UPDATE log.schema_version SET version = ?", [version + 1])
        log.commit()

    def _catch_up(self, log: duckdb.DuckDBPyConnection) -> None:
        stop_rejecting_at = self.rejected_events + _REJECTED_PER_FLUSH
        for _ in range(_BATCHES_PER_FLUSH):
            events = self._store.read(self.position, self._batch_events)
            if not all(self._copy(log, part, stop_rejecting_at) for part in _parts(events)):
                break
            if len(events) < self._batch_events:  # a transaction costs as much as 1,000 events: not one for each few
                break

    def _copy(self, log: duckdb.DuckDBPyConnection, events: Sequence[Event], stop_rejecting_at: int) -> bool:
        """Copy `events` in order, halving them until only rows that do not fit are rejected. False: gave up."""
        try:
            self._insert(log, events)
        except _MISFITS as error:
            log.rollback()
            if len(events) > 1:
                half = len(events) // 2
                return all(self._copy(log, part, stop_rejecting_at) for part in (events[:half], events[half:]))
            if self.rejected_events >= stop_rejecting_at:
                return False
            self._reject(log, events[0], f"{type(error).__name__}: {error}")
        return True

    def _insert(self, log: duckdb.DuckDBPyConnection, events: Sequence[Event]) -> None:
        lines: dict[str, list[bytes]] = {}
        for event in events:
            # `seq` becomes the object's first key. A raw newline can only be space between JSON's tokens.
            head = b'{"seq":%d,' if event.payload != b"{}" else b'{"seq":%d'
            line = head % event.seq + event.payload[1:].replace(b"\n", b" ")
            lines.setdefault(event.kind, []).append(line)
        log.begin()
        for kind, of_kind in lines.items():
            self._lines.write_bytes(b"\n".join(of_kind))
            log.execute(_INSERTS[kind], [str(self._lines)])
        self._commit(log, events)

    def _reject(self, log: duckdb.DuckDBPyConnection, event: Event, error: str) -> None:
        _logger.warning("event %d (%s) does not fit its table; it is in table rejected", event.seq, event.kind)
        log.begin()
        log.execute(_REJECT, [event.seq, event.kind, event.payload, error])
        self._commit(log, [event])
        self.rejected_events += 1

    def _commit(self, log: duckdb.DuckDBPyConnection, events: Sequence[Event]) -> None:
        # The position is part of the transaction: whatever happens next, no event is copied twice or never.
        log.execute("UPDATE log.log_position SET seq = ?", [events[-1].seq])
        log.commit()
        self._position = events[-1].seq
        self.copied_events += len(events)


def _quoted(path: Path) -> str:
    return "'" + str(path).replace("'", "''") + "'"


def why_unreadable(error: Exception, timeout_s: float) -> str:
    """What is said of an error that ended a read."""
    if isinstance(error, duckdb.InterruptException):
        return f"reading the log took longer than {timeout_s:g} s, or the service is stopping; ask for a shorter time"
    if isinstance(error, duckdb.OutOfMemoryException):
        return f"reading the log takes more than {_READ_MEMORY_MB} MB; ask for a shorter time"
    if any(sign in str(error) for sign in IN_USE):
        return "the log is in use by another process; try again later"
    _logger.error("reading the log failed: %s", error)
    return "the log cannot be read; is the file still there? The service's own log says more"


def _parts(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    """`events` in slices of at least one event and little more than _BYTES_PER_INSERT of payload."""
    start = size = 0
    for end, event in enumerate(events, 1):
        size += len(event.payload)
        if size >= _BYTES_PER_INSERT:
            yield events[start:end]
            start, size = end, 0
    if start < len(events):
        yield events[start:]
