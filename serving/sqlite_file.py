"""The operational store's SQLite file: its schema and version, how it is opened, and the lock that keeps others out.

Nothing here knows of events in memory, of batches or of the event loop.
"""

from __future__ import annotations

import os
import sqlite3
import sys
from pathlib import Path
from typing import Literal

from serving.store import StoreUnusable

if sys.platform != "win32":
    import fcntl

__all__ = ["SCHEMA_VERSION", "last_seq", "lock_file", "open_reader", "open_writer"]

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x504E5453  # "PNTS": tells our files from other programs'
_SCHEMA = """
CREATE TABLE events (
    seq INTEGER PRIMARY KEY, kind TEXT NOT NULL, decision_id TEXT NOT NULL, ts REAL NOT NULL, payload BLOB NOT NULL
);
CREATE INDEX events_by_decision ON events (decision_id);
CREATE TABLE snapshots (seq INTEGER PRIMARY KEY, payload BLOB NOT NULL);
CREATE TABLE high_water (seq INTEGER NOT NULL);
INSERT INTO high_water VALUES (0);
"""
# Of use to this version, no matter to an older one: files need no other version number for it.
_INDEX = "CREATE INDEX IF NOT EXISTS outcomes_by_time ON events (ts) WHERE kind = 'outcome'"


def lock_file(path: Path) -> int:
    """Keep a second process out: two writers would both assign the next seq. Returns the lock file's descriptor."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600)
    except OSError as error:
        raise StoreUnusable(str(path), f"{error}; its directory must exist and be writable") from error
    if sys.platform != "win32":
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise StoreUnusable(str(path), "another process has it open; give each its own data_dir") from error
    return descriptor


def open_writer(path: Path, synchronous: Literal["full", "normal"]) -> sqlite3.Connection:
    """The one connection that writes; creates the schema in a new file. Raises StoreUnusable, sqlite3.Error."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        # 8 KiB pages: with 4 KiB only two decisions fit one, and batches cost more (5.4 against 4.8 µs an event).
        connection.execute("PRAGMA page_size = 8192")
        _check_version(connection, path)
        _use_wal(connection, path)
        connection.execute(_INDEX)
        for pragma in (
            f"synchronous = {synchronous}",
            "cache_size = -8192",  # KiB
            "wal_autocheckpoint = 1000",  # pages: about 8 MB
            "journal_size_limit = 67108864",  # a WAL that once grew larger is cut back to this
            "mmap_size = 0",  # mapped pages would count as resident memory, without bound
        ):
            connection.execute(f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _check_version(connection: sqlite3.Connection, path: Path) -> None:
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (objects,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if not objects and not application:
        connection.executescript(
            f"BEGIN EXCLUSIVE; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID};"
            f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
        )
    elif application != _APPLICATION_ID:
        raise StoreUnusable(str(path), "it belongs to another program")
    elif version > SCHEMA_VERSION:
        raise StoreUnusable(
            str(path), f"its schema is version {version} and this program knows up to {SCHEMA_VERSION}; upgrade"
        )


def _use_wal(connection: sqlite3.Connection, path: Path) -> None:
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise StoreUnusable(str(path), f"its file system does not support a WAL (journal mode stays {mode})")


def open_reader(path: Path) -> sqlite3.Connection:
    """A connection for reading, usable from any thread, by one at a time."""
    # A reader never waits for the writer in WAL mode; the timeout is for the moment of recovery after a crash.
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=1.0)
    connection.execute("PRAGMA query_only = 1")
    connection.execute("PRAGMA cache_size = -2048")
    connection.execute("SELECT 1 FROM sqlite_schema").fetchone()
    return connection


def last_seq(connection: sqlite3.Connection) -> int:
    """The highest seq ever assigned, even when its event was pruned."""
    (seq,) = connection.execute(
        "SELECT max((SELECT coalesce(max(seq), 0) FROM events), (SELECT seq FROM high_water),"
        " (SELECT coalesce(max(seq), 0) FROM snapshots))"
    ).fetchone()
    return int(seq)
