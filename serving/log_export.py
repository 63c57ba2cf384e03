"""A table of the analytical log as a Parquet file, for evaluation elsewhere.

Owns which rows are given at once, and that no file stays behind. Knows nothing of HTTP or of what a row means.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import IO, TYPE_CHECKING

from serving.analytics import AnalyticalLog
from serving.errors import InvalidRequest
from serving.log_errors import LogTooLarge
from serving.log_schema import TABLES

if TYPE_CHECKING:
    import duckdb

__all__ = ["Excerpt", "LogExport"]

_MOST_ROWS = 20_000_000
_TIMEOUT_S = 600.0
# Rows are collected before they are written: 5,000 decisions of a large pool take about 10 MB.
_ROWS_PER_GROUP = 5_000


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The rows of `table` with since ≤ ts < until, in unix seconds. Raises InvalidRequest where there is no such."""

    table: str
    since: float | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        tables = list(dict(TABLES.values()))
        if self.table not in tables:
            raise InvalidRequest(f"must be one of {', '.join(tables)}", "table")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise InvalidRequest("must be before until", "since")


class LogExport:
    """Writes excerpts into `folder`, one at a time, on the log's own thread; each worker, by its `index`, a file."""

    def __init__(self, log: AnalyticalLog, folder: Path, *, index: int = 0, most_rows: int = _MOST_ROWS) -> None:
        self._log, self._most_rows = log, most_rows
        self._path = folder / (f"log-export-{index}.parquet" if index else "log-export.parquet")
        self._path.unlink(missing_ok=True)  # of a service that was killed while it wrote one

    async def open(self, excerpt: Excerpt) -> IO[bytes]:
        """The Parquet file, open for reading and already without a name: it is gone once it is closed.

        Raises LogTooLarge, LogUnavailable.
        """
        return await self._log.read(lambda log: self._written(log, excerpt), _TIMEOUT_S)

    def _written(self, log: duckdb.DuckDBPyConnection, excerpt: Excerpt) -> IO[bytes]:
        since, until = (-inf if excerpt.since is None else excerpt.since), excerpt.until
        # Without bounds all rows, also those without a time.
        chosen = f"FROM log.{excerpt.table}"
        bounds: list[float] = []
        if excerpt.since is not None or until is not None:
            chosen += " WHERE ts >= ? AND ts < ?"
            bounds = [since, inf if until is None else until]
        (count,) = log.execute(f"SELECT count(*) {chosen}", bounds).fetchall()[0]
        if count > self._most_rows:
            raise LogTooLarge(excerpt.table, count, self._most_rows)
        quoted = str(self._path).replace("'", "''")
        try:
            log.execute(
                f"COPY (SELECT * {chosen}) TO '{quoted}'"
                f" (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROWS_PER_GROUP})",
                bounds,
            )
            return self._path.open("rb")
        finally:
            self._path.unlink(missing_ok=True)
