"""What happened to pools and models, and who changed what: a page of the log's events that are of no decision.

Reads `changes` and `filter_events`, newest first. How an entry is told in words is the time line's matter; knows
nothing of HTTP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import orjson

from serving.dashboard.timeline import told
from serving.errors import InvalidRequest
from serving.log_errors import LogUnavailable

if TYPE_CHECKING:
    import duckdb

    from serving.analytics import AnalyticalLog
    from serving.store import Store

__all__ = ["EVENT_KINDS", "MOST_EVENTS", "History", "Wanted"]

MOST_EVENTS: Final = 500  # of one page
_TIMEOUT_S: Final = 30.0
_AUTOMATIC: Final = "('canary_step', 'canary_promoted', 'canary_rolled_back', 'canary_held')"
EVENT_KINDS: Final = {
    "filter": "subject IS NULL AND reason NOT IN ('drift', 'added', 'removed')",
    "drift": "subject IS NULL AND reason = 'drift'",
    "model": "subject IS NULL AND reason IN ('added', 'removed')",
    "canary": "what LIKE 'canary%'",
    "breaker": "subject = 'breakers'",
    "budget": "subject = 'budgets' AND what <> 'limit'",
    "key": "subject = 'keys'",
    "change": "subject IS NOT NULL AND subject <> 'breakers' AND NOT (subject = 'budgets' AND what <> 'limit')"
    f" AND what NOT IN {_AUTOMATIC}",
}
_OF_A_CHANGE: Final = ("subject", "what", "before", "after", "reason")
_OF_A_STANDING: Final = (
    "constraint_name",
    "from_state",
    "to_state",
    "reason",
    "calls",
    "rate",
    "limit_rate",
    "evidence",
)
_COLUMNS: Final = ("seq", "ts", "pool", "model", "by", *_OF_A_CHANGE, *_OF_A_STANDING)
_NAMES: Final = tuple(dict.fromkeys(_COLUMNS))


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events: of one kind, of one pool (and those of none), since a unix time, before a cursor.

    Raises InvalidRequest for what is no kind or cursor.
    """

    limit: int
    kind: str | None = None
    pool: str | None = None
    since: float | None = None
    cursor: str | None = None

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in EVENT_KINDS:
            raise InvalidRequest(f"must be one of {', '.join(EVENT_KINDS)}", "kind")
        if self.cursor is not None and not (self.cursor.isascii() and self.cursor.isdigit() and len(self.cursor) < 19):
            raise InvalidRequest("must be a next_cursor of an earlier answer", "cursor")


class History:
    """Answers `GET /admin/events` from everything that was recorded before the question."""

    def __init__(self, log: AnalyticalLog, store: Store) -> None:
        self._log, self._store = log, store

    async def of(self, wanted: Wanted) -> dict[str, Any]:
        """One page, as JSON; raises LogUnavailable."""
        asked_at = self._store.position
        await self._store.flush()
        rows = await self._log.read(lambda log: _read(log, wanted), _TIMEOUT_S)
        if self._log.position < asked_at:
            raise LogUnavailable(f"{self._log.lag_events} events are not in the log yet; try again later")
        page, more = rows[: wanted.limit], len(rows) > wanted.limit
        return {"events": [_entry(row) for row in page], "next_cursor": str(page[-1]["seq"]) if more else None}


def _read(log: duckdb.DuckDBPyConnection, wanted: Wanted) -> list[dict[str, Any]]:
    conditions, bounds = ["true"], list[Any]()
    if wanted.kind is not None:
        conditions.append(f"({EVENT_KINDS[wanted.kind]})")
    for condition, value in (
        ("(pool IS NULL OR pool = ?)", wanted.pool),
        ("ts >= ?", wanted.since),
        ("seq < ?", None if wanted.cursor is None else int(wanted.cursor)),
    ):
        if value is not None:
            conditions.append(condition)
            bounds.append(value)
    columns = ", ".join(f'"{name}"' for name in _NAMES)
    found = log.execute(
        f"SELECT {columns} FROM (SELECT * FROM log.changes UNION ALL BY NAME SELECT * FROM log.filter_events)"  # noqa: S608 - this file's own constants
        f" WHERE {' AND '.join(conditions)} ORDER BY seq DESC LIMIT {wanted.limit + 1}",
        bounds,
    ).fetchall()
    return [dict(zip(_NAMES, row, strict=True)) for row in found]


def _entry(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the time line tells it, with everything the log has of it."""
    shown = {"seq": row["seq"]}
    if row["subject"] is None:
        numbers = {name: row[name] for name in _OF_A_STANDING}
        del row["subject"]
        return shown | told(row) | numbers
    row |= {side: _value(row[side]) for side in ("before", "after")}
    return shown | told(row) | {name: row[name] for name in _OF_A_CHANGE}


def _value(text: str | None) -> Any:
    """A value as it was logged: the log keeps its JSON, and a plain word as it is."""
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return text
