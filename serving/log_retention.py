"""How long rows stay in the analytical log: those older than its retention are removed, a bounded step at a time.

A decision goes whole, with its outcomes and rewards, by when it was made; rows of no decision go by their own time.
Owns what goes and when to look. Never touches the operational store, whose events leave by the feedback horizon.
"""
# ruff: noqa: S608 - statements are built from this file's own constants

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from serving.errors import ServiceError
from serving.log_errors import LogUnavailable
from serving.log_schema import TABLES
from serving.records import first_id_at
from serving.store import StoreError

if TYPE_CHECKING:
    import duckdb

    from serving.analytics import AnalyticalLog
    from serving.learner import Learner

__all__ = ["LogRetention", "remove_older"]

_log = logging.getLogger("pointsman.retention")
_DAY_S: Final = 86_400.0
_LOOK_S: Final = 1.0  # also between two steps: flushes and readers come in between
_LONGEST_PASS_S: Final = 3_600.0
_DECISIONS_A_STEP: Final = 50_000
_CLOCK_WAS_SET_S: Final = 60.0
_OF_DECISIONS: Final = ("outcomes", "rewards")
_AUDIT: Final = "log"  # the subject of the rows that say what was removed


class LogRetention:
    """Keeps `log` at its retention; `learner` logs how many rows went, `horizon_s` is that of feedback.

    A pass begins every hour, or every 24th part of a shorter retention, and goes on until nothing is too old. A clock
    that was set has an hour to be set right before anything goes by it. `removed_rows` counts by table; `unforeseen` is
    called for an error that nobody foresaw.
    """

    def __init__(
        self,
        log: AnalyticalLog,
        learner: Learner,
        *,
        unforeseen: Callable[[], None],
        decisions_a_step: int = _DECISIONS_A_STEP,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._log, self._learner, self._clock, self._monotonic = log, learner, clock, monotonic
        self._unforeseen = unforeseen
        self._clock_ahead_s: float | None = None
        self._decisions_a_step = decisions_a_step
        self._retention_s: float | None = None
        self._horizon_s = 0.0
        self._next_pass_at = 0.0
        self._untold: Counter[str] = Counter()
        self.removed_rows: Counter[str] = Counter(dict.fromkeys(dict(TABLES.values()), 0))

    def configure(self, retention_days: float | None, horizon_s: float) -> None:
        """Keep rows for so many days from now on; None: for ever."""
        retention_s = None if retention_days is None else retention_days * _DAY_S
        if retention_s != self._retention_s:
            self._next_pass_at = 0.0
        self._retention_s, self._horizon_s = retention_s, horizon_s

    async def run(self) -> None:
        """Remove what is too old, until cancelled."""
        try:
            while True:
                await asyncio.sleep(_LOOK_S)
                try:
                    await self.step()
                except LogUnavailable as error:  # somebody reads it, or it is broken: the log itself says so
                    _log.debug("old rows stay for now: %s", error)
                except Exception:  # noqa: BLE001 - the task's boundary
                    self._next_pass_at = self._clock() + _LONGEST_PASS_S
                    _log.exception("old rows stay in the analytical log")
                    self._unforeseen()
        finally:
            self._tell()

    async def step(self) -> bool:
        """Remove some, if any are due; whether there may be more. Raises LogUnavailable."""
        now, retention_s = self._now(), self._retention_s
        # A clock that was set back must not put a pass off for longer than it ever is.
        if retention_s is None or now < self._next_pass_at <= now + _LONGEST_PASS_S:
            return False
        # Whole seconds: ids hold milliseconds, and a bound between two would tell ids and times apart.
        before = float(math.floor(now - retention_s))
        limit, horizon_s = self._decisions_a_step, self._horizon_s
        gone, more = await self._log.change(lambda log: remove_older(log, before, limit, horizon_s))
        self._untold.update(gone)
        self.removed_rows.update(gone)
        if not more:
            self._next_pass_at = now + min(_LONGEST_PASS_S, retention_s / 24)
            self._tell(before)
        return more

    def _now(self) -> float:
        now = self._clock()
        before, self._clock_ahead_s = self._clock_ahead_s, now - self._monotonic()
        if before is not None and abs(self._clock_ahead_s - before) > _CLOCK_WAS_SET_S:
            self._next_pass_at = now + _LONGEST_PASS_S
        return now

    def _tell(self, before: float | None = None) -> None:
        """Log what a pass removed; the rows that say so are not told of when they go themselves."""
        gone = {table: count for table, count in self._untold.items() if count}
        if not gone:
            return
        self._untold.clear()
        row: dict[str, Any] = {"ts": self._clock(), "subject": _AUDIT, "what": "rows_removed"}
        row |= {
            "after": gone | ({} if before is None else {"before_ts": before}),
            "reason": "older than retention_days",
        }
        row |= dict.fromkeys(("pool", "model", "before", "by"))
        try:
            self._learner.note_change([row])
        except (StoreError, ServiceError) as error:
            _log.warning("removed %s from the analytical log; no event says so: %s", gone, error)


def remove_older(
    log: duckdb.DuckDBPyConnection, before: float, limit: int, horizon_s: float
) -> tuple[Mapping[str, int], bool]:
    """Remove from the tables attached as `log` what is older than `before`, of about `limit` decisions at most.

    Returns how many rows went by table, and whether older decisions are left. `before` is in whole seconds of unix
    time; what belongs to a decision came within `horizon_s` of it, or goes when it is itself older than that. Belongs
    into one transaction. Raises duckdb.Error.
    """
    # In the file's order, which is that of time but where a clock was set; then a step is another size, no more.
    last = log.execute("SELECT ts FROM log.decisions WHERE ts < ? LIMIT 1 OFFSET ?", [before, limit - 1]).fetchall()
    upto = min(before, math.floor(last[0][0]) + 1.0) if last else before
    gone = {"decisions": _count(log, "DELETE FROM log.decisions WHERE ts < ?", [upto])}
    # By the id, which has the decision's time in it: nothing of a decision that stays goes, nor stays of one that
    # goes, whatever the clock did in between. The time is there to leave younger parts of the file unread.
    bounds = [upto + horizon_s, first_id_at(0.0), first_id_at(upto)]
    for table in _OF_DECISIONS:
        sql = f"DELETE FROM log.{table} WHERE ts < ? AND decision_id >= ? AND decision_id < ?"
        gone[table] = _count(log, sql, bounds)
    if upto < before:
        return gone, True
    gone["changes"] = _count(log, "DELETE FROM log.changes WHERE ts < ? AND subject <> ?", [before, _AUDIT])
    log.execute("DELETE FROM log.changes WHERE ts < ?", [before])
    for table in ("filter_events", "benchmark_results"):
        gone[table] = _count(log, f"DELETE FROM log.{table} WHERE ts < ?", [before])
    for table in _OF_DECISIONS:  # what came later than the horizon, or of an older time than its decision's
        sql = f"DELETE FROM log.{table} WHERE ts < ? AND decision_id < ?"
        gone[table] += _count(log, sql, [before, first_id_at(before)])
    # A rejected event's time may be what did not fit: it goes with those that were logged before it.
    log.execute("DELETE FROM log.rejected WHERE seq < (SELECT min(seq) FROM log.decisions)")
    return gone, False


def _count(log: duckdb.DuckDBPyConnection, sql: str, bounds: list[Any]) -> int:
    return int(log.execute(sql, bounds).fetchall()[0][0])
