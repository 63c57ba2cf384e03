"""Data folders of services that have been at it for long, made from a short run's: more keys, decisions or rows.

What is added is copies of what that service wrote itself, under ids of their own; what it has learned stays.
"""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import duckdb

from bandit.snapshot import dumps, loads
from serving.access.keys import Key, digest_of

__all__ = ["Base", "key_name"]

_ROWS_A_STATEMENT = 100_000


def key_name(number: int) -> str:
    """The secret of one of the keys that `Base.with_keys` adds."""
    return f"pm-key-of-the-benchmark-{number}"


class Base:
    """The data folder of a service that has ended; every method makes a new folder out of it."""

    def __init__(self, data: Path) -> None:
        self._data = data

    def with_keys(self, data: Path, count: int) -> None:
        """So many keys made at run time; they stand in the snapshot, where they are after 20,000 events."""
        self._copied(data)
        with _store(data) as store:
            ((seq, payload),) = store.execute("SELECT seq, payload FROM snapshots ORDER BY seq DESC LIMIT 1").fetchall()
            state = loads(payload)
            made = [self._key(number) for number in range(count)]
            state["folds"]["keys"]["keys"] += [{"public": key.public(), "secrets": key.private()} for key in made]
            store.execute("UPDATE snapshots SET payload = ? WHERE seq = ?", (dumps(state), seq))

    def with_open_decisions(self, data: Path, count: int) -> list[str]:
        """So many decisions with an outcome and without feedback, of the last hour, in the operational store alone.

        Returns their ids. The snapshot and the log speak of all of them already, so that a start replays nothing.
        """
        self._copied(data)
        begin_ms = int(time.time() * 1e3) - 3_600_000
        ids = [f"pm-{begin_ms + number * 3_600_000 // count:012x}{number:020x}" for number in range(count)]
        with _store(data) as store:
            pairs = store.execute(
                "SELECT d.decision_id, d.payload, o.payload FROM events d JOIN events o USING (decision_id)"
                " WHERE d.kind = 'decision' AND o.kind = 'outcome' ORDER BY d.seq DESC LIMIT 100"
            ).fetchall()
            (seq,) = store.execute("SELECT max(seq) FROM events").fetchone()
            rows = []
            for number, name in enumerate(ids):
                old, *payloads = pairs[number % len(pairs)]
                for kind, payload in zip(("decision", "outcome"), payloads, strict=True):
                    seq += 1
                    text = payload.replace(old.encode(), name.encode())
                    rows.append((seq, kind, name, begin_ms / 1e3 + number * 3_600 / count, text))
                if len(rows) >= _ROWS_A_STATEMENT or number == count - 1:
                    store.executemany("INSERT INTO events VALUES (?, ?, ?, ?, ?)", rows)
                    rows = []
            store.execute("UPDATE snapshots SET seq = ? WHERE seq = (SELECT max(seq) FROM snapshots)", (seq,))
            store.execute("DELETE FROM snapshots WHERE seq < ?", (seq,))
        with duckdb.connect(str(data / "log.duckdb")) as log:
            log.execute("UPDATE log_position SET seq = ?", [seq])
        return ids

    def with_log_rows(self, data: Path, count: int) -> None:
        """About so many rows in decisions, outcomes and rewards together; they are older than what is there."""
        self._copied(data)
        with duckdb.connect(str(data / "log.duckdb"), config={"threads": 1}) as log:
            have = {t: log.execute(f"SELECT count(*) FROM {t}").fetchall()[0][0] for t in _TABLES}  # noqa: S608 - ours
            times = max(1, round(count / sum(have.values())))
            for table in _TABLES:
                log.execute(f"CREATE TABLE aside AS FROM {table}")
                step = max(1, _ROWS_A_STATEMENT // have[table])
                for start in range(0, times, step):
                    log.execute(
                        f"INSERT INTO {table} SELECT a.* REPLACE (a.ts - 86400 AS ts,"  # noqa: S608 - ours
                        " a.decision_id || '-' || copy AS decision_id) FROM aside a,"
                        f" range({start}, {min(times, start + step)}) t(copy)"
                    )
                log.execute("DROP TABLE aside")

    def _copied(self, data: Path) -> None:
        data.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(self._data, data)

    @staticmethod
    def _key(number: int) -> Key:
        secret = key_name(number)
        return Key(
            id=f"key-{number:012x}",
            name=None,
            user=f"user-{number}",
            team="bench",
            tier="paid",
            allow=None,
            prefix=f"{secret[:10]}…",
            made_at=time.time(),
            expires_at=None,
            digests=((digest_of(secret), None),),
        )


_TABLES = ("decisions", "outcomes", "rewards")


@contextlib.contextmanager
def _store(data: Path) -> Iterator[sqlite3.Connection]:
    """The operational store, in one transaction."""
    with contextlib.closing(sqlite3.connect(data / "router.sqlite")) as store, store:
        yield store
