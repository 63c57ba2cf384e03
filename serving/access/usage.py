"""What callers used, summed from the analytical log for billing: equal to the sum of the outcomes, to the last digit.

Owns the SQL and the two forms of the answer. Knows nothing of HTTP, and never what a budget allows.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from serving.errors import InvalidRequest
from serving.log_errors import LogUnavailable

if TYPE_CHECKING:
    import duckdb

    from serving.analytics import AnalyticalLog
    from serving.store import Store

__all__ = ["DIMENSIONS", "Bill", "Usage", "UsageQuery"]

_TIMEOUT_S: Final = 60.0
_UTC = "make_timestamp(CAST(floor(o.ts) AS BIGINT) * 1000000)"
DIMENSIONS: Final = {
    **{
        name: f"CASE WHEN d.mode <> 'shadow' THEN d.{column} END"  # nobody asked for a shadow's answer
        for name, column in {"team": "team", "user": "user", "tier": "tier", "key": "key_id"}.items()
    },
    "pool": "d.pool",
    "model": "o.model",
    "mode": "d.mode",
    "day": f"strftime({_UTC}, '%Y-%m-%d')",
    "hour": f"strftime({_UTC}, '%Y-%m-%dT%H:00Z')",
}
_SUMS: Final = {  # a DECIMAL each: a sum of doubles depends on its order
    "calls": "count(DISTINCT o.decision_id)",
    "attempts": "count(*)",
    "failed": "count(*) FILTER (o.status <> 'ok')",
    "input_tokens": "coalesce(sum(o.input_tokens), 0)",
    "output_tokens": "coalesce(sum(o.output_tokens), 0)",
    "cached_tokens": "coalesce(sum(o.cached_tokens), 0)",
    "cost_usd": "coalesce(sum(CAST(o.cost_usd AS DECIMAL(38, 12))), 0)",
    "saved_usd": "coalesce(sum(CAST(o.saved_usd AS DECIMAL(38, 12))), 0)",
    "unpriced_calls": "count(*) FILTER (o.cost_usd IS NULL AND o.status = 'ok')",
}
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


@dataclass(frozen=True, slots=True)
class UsageQuery:
    """Outcomes with since ≤ ts < until (unix seconds, None: no bound), a row for each value of `by`.

    Raises InvalidRequest for what is no dimension, twice, or no stretch of time.
    """

    by: tuple[str, ...] = ("team", "model")
    since: float | None = None
    until: float | None = None

    def __post_init__(self) -> None:
        for name in self.by:
            if name not in DIMENSIONS:
                raise InvalidRequest(f"must be some of {', '.join(DIMENSIONS)}, with commas between them", "by")
        if len(set(self.by)) < len(self.by):
            raise InvalidRequest("names one twice", "by")
        if self.since is not None and self.until is not None and self.since >= self.until:
            raise InvalidRequest("must be before to", "from")


@dataclass(frozen=True, slots=True)
class Bill:
    """Rows as {dimension or sum: value}, sums of money as Decimal, and the sum of them all."""

    query: UsageQuery
    rows: list[dict[str, Any]]
    total: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As JSON; money as numbers."""
        rows = [_plain(row) for row in self.rows]
        bounds = {"from": self.query.since, "to": self.query.until}
        return {"by": list(self.query.by), **bounds, "rows": rows, "total": _plain(self.total)}

    def to_csv(self) -> str:
        """As CSV (RFC 4180), money with all its digits. No text is taken for a formula by a spreadsheet."""
        out = io.StringIO()
        writer = csv.writer(out, lineterminator="\r\n")
        writer.writerow([*self.query.by, *_SUMS])
        writer.writerows([_cell(value) for value in row.values()] for row in self.rows)
        return out.getvalue()


class Usage:
    """Answers `GET /admin/usage` from everything that was recorded before the question."""

    def __init__(self, log: AnalyticalLog, store: Store, *, most_rows: int = 10_000) -> None:
        self._log, self._store, self._most_rows = log, store, most_rows

    async def of(self, query: UsageQuery) -> Bill:
        """The bill; raises LogUnavailable, and InvalidRequest where it would have too many rows."""
        asked_at = self._store.position
        await self._store.flush()
        while self._log.position < asked_at:
            copied = await self._log.flush()
            if not copied and self._log.position < asked_at:  # else the log's own task has done it meanwhile
                raise LogUnavailable(f"{self._log.lag_events} events cannot be copied to the log now; try again later")
        return await self._log.read(lambda log: self._read(log, query), _TIMEOUT_S)

    def _read(self, log: duckdb.DuckDBPyConnection, query: UsageQuery) -> Bill:
        sums = ", ".join(f"{formula} AS {name}" for name, formula in _SUMS.items())
        start = "FROM log.outcomes o LEFT JOIN log.decisions d USING (decision_id)"
        bounds = [bound for bound in (query.since, query.until) if bound is not None]
        conditions = ["o.ts >= ?"] * (query.since is not None) + ["o.ts < ?"] * (query.until is not None)
        where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
        total = log.execute(f"SELECT {sums} {start}{where}", bounds).fetchall()[0]
        groups = ", ".join(DIMENSIONS[name] for name in query.by)
        found = log.execute(
            f"SELECT {groups}, {sums} {start}{where} GROUP BY {groups} ORDER BY {groups} LIMIT {self._most_rows + 1}",
            bounds,
        ).fetchall()
        if len(found) > self._most_rows:
            raise InvalidRequest(f"makes more than {self._most_rows:,} rows; ask for less time or fewer columns", "by")
        names = (*query.by, *_SUMS)
        return Bill(query, [dict(zip(names, row, strict=True)) for row in found], dict(zip(_SUMS, total, strict=True)))


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    money: Sequence[str] = ("cost_usd", "saved_usd")
    return {k: v if isinstance(v, str | None) else float(v) if k in money else int(v) for k, v in row.items()}


def _cell(value: Any) -> str:
    """Text that a spreadsheet would take for a formula gets a quote before it (OWASP, CSV injection)."""
    if value is None:
        return ""
    if isinstance(value, str):
        return f"'{value}" if value.startswith(_FORMULA) else value
    return f"{value:f}" if isinstance(value, Decimal) else str(value)
