"""The live feed: what pages are told, all at once when they come and then once a second.

One task looks at what has changed and tells every listener of a pool the same bytes; while nobody listens it only looks
at breakers. A listener who is too slow is let go, and comes back by itself. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from serving.access.budget_desk import BudgetDesk
from serving.dashboard.live import Live
from serving.dashboard.series import share_of
from serving.errors import Overloaded, UnknownModel
from serving.learner import Learner
from serving.traffic.pool_desk import PoolDesk

__all__ = ["Feed", "Views"]

_EVERY_S: Final = 1.0
_RECENT_S: Final = 60.0  # the last minute
_MOST_BEHIND: Final = 30  # ticks
_EVENTS_AT_FIRST: Final = 200
_log = logging.getLogger("pointsman.dashboard")


class Views:
    """What is shown of one pool, as JSON. `breakers`: the states of a model's endpoints."""

    def __init__(
        self, live: Live, learner: Learner, pools: PoolDesk, budgets: BudgetDesk, breakers: Callable[[str], Any]
    ) -> None:
        self.live, self._learner, self._pools, self._budgets, self._breakers = live, learner, pools, budgets, breakers
        self._states: dict[tuple[str, str], str] = {}

    @property
    def names(self) -> list[str]:
        """The pools there are."""
        return list(self._learner.pools)

    def first(self, pool: str, now: float) -> dict[str, Any]:
        """Everything, for one who has seen nothing yet."""
        series = self.live.series(pool)
        return self._figures(pool, now) | {
            "pools": self.names,
            "fine": [bucket.shown() for bucket in series.fine()],
            "coarse": [bucket.shown() for bucket in series.coarse()],
            "events": self.live.timeline.last(_EVENTS_AT_FIRST, pool),
        }

    def next(self, pool: str, now: float, seen: int) -> dict[str, Any]:
        """What may have changed since the last second; `seen`: how many events there were then."""
        series = self.live.series(pool)
        events = [entry for entry in self.live.timeline.since(seen) if entry["pool"] in (None, pool)]
        return self._figures(pool, now) | {
            "fine": [bucket.shown() for bucket in series.fine()[-2:]],
            "coarse": [bucket.shown() for bucket in series.coarse()[-2:]],
            "events": events[::-1],
        }

    def look_at_breakers(self, now: float) -> None:
        """Log which breakers have moved; of processes that share the log, one does."""
        for model in self._learner.roster.names:
            for endpoint, state in self._breakers(model).items():
                before = self._states.get((model, endpoint))
                if before is None:  # as it was in an earlier life
                    before = "open" if self.live.timeline.broken(model, now) else "closed"
                if state != before and self._learner.leads:
                    row = {"ts": now, "subject": "breakers", "what": state, "pool": None, "model": model, "by": None}
                    self._learner.note_change([row | {"before": before, "after": state, "reason": endpoint}])
                self._states[model, endpoint] = state

    def _figures(self, pool: str, now: float) -> dict[str, Any]:
        chooser = self._learner.pools[pool]
        limits = chooser.constraints
        recent = self.live.series(pool).since(now - _RECENT_S)
        return {
            "now": now,
            "since": self.live.since,
            "everything": self.live.everything(),
            "total": self.live.total(pool),
            "models": self.live.models(pool),
            "recent": recent.shown() | {"models": {m: _recently(cell) for m, cell in recent.cells.items()}},
            "alone": self._alone(pool),
            "pool": self._pools.pool(pool),
            "canary": self._pools.canary(pool),
            "limits": {
                "p95_latency_s": limits.p95_latency_s,
                "max_error_rate": limits.max_error_rate,
                "min_accuracy": limits.min_accuracy,
            },
            "usd_per_request": None if chooser.pacer is None else chooser.pacer.usd_per_request,
            "budgets": self._budgets.listed(now),
        }

    def _alone(self, pool: str) -> dict[str, Any]:
        """What single models would have cost, and which is the best: of those not filtered the one of most quality."""
        chooser, alone = self._learner.pools[pool], self.live.alone(pool)
        unfiltered = {n for n, state in zip(chooser.names, chooser.filters.states, strict=True) if state != "filtered"}
        able = {n: m for n, m in alone["models"].items() if n in unfiltered and None not in m.values()}
        best = max(able, key=lambda name: able[name]["quality"], default=None)
        saved = None if best is None else able[best]["cost_usd"] - alone["cost_usd"]
        return alone | {"best": best, "saved_usd": saved}


@dataclass(slots=True, eq=False)
class _Listener:
    pool: str
    waiting: asyncio.Queue[bytes | None] = field(default_factory=lambda: asyncio.Queue(_MOST_BEHIND))


class Feed:
    """Feeds at most `max_listeners` listeners, until it is closed; there must be something to `show` first.

    `unforeseen` is called for an error that nobody foresaw.
    """

    _views: Views

    def __init__(self, max_listeners: int, unforeseen: Callable[[], None]) -> None:
        self._most, self._unforeseen = max_listeners, unforeseen
        self._listeners: set[_Listener] = set()
        self._closed = False

    def show(self, views: Views, max_listeners: int) -> None:
        """Show this from now on; who listens to a pool that is no more is let go at the next look."""
        self._views, self._most = views, max_listeners

    @contextmanager
    def listen(self, pool: str | None) -> Iterator[AsyncIterator[bytes]]:
        """Events in the form of server-sent events, of `pool` or the first one. Raises UnknownModel, Overloaded."""
        names = self._views.names
        name = names[0] if pool is None else pool
        if name not in names:
            raise UnknownModel(name, names, "pool")
        if self._closed or len(self._listeners) >= self._most:
            raise Overloaded(f"{len(self._listeners)} dashboards are open, the most dashboard.max_listeners allows", 5)
        listener = _Listener(name)
        listener.waiting.put_nowait(_event("snapshot", self._views.first(name, time.time())))
        self._listeners.add(listener)
        try:
            yield self._events(listener)
        finally:
            self._listeners.discard(listener)

    async def run(self) -> None:
        """Tell the listeners, every second until cancelled."""
        while True:
            seen = self._views.live.timeline.count
            await asyncio.sleep(_EVERY_S)
            try:
                self._tick(time.time(), seen)
            except Exception:  # noqa: BLE001 - the task's boundary
                _log.exception("the dashboards were told nothing this second")
                self._unforeseen()

    def close(self) -> None:
        """Let all listeners go, and take no more."""
        self._closed = True
        for listener in list(self._listeners):
            self._let_go(listener)

    def _tick(self, now: float, seen: int) -> None:
        self._views.look_at_breakers(now)
        told: dict[str, bytes] = {}
        for listener in list(self._listeners):
            pool = listener.pool
            if pool not in self._views.names:
                self._let_go(listener)
                continue
            if pool not in told:
                told[pool] = _event("tick", self._views.next(pool, now, seen))
            try:
                listener.waiting.put_nowait(told[pool])
            except asyncio.QueueFull:
                self._let_go(listener)

    def _let_go(self, listener: _Listener) -> None:
        self._listeners.discard(listener)
        while not listener.waiting.empty():
            listener.waiting.get_nowait()
        listener.waiting.put_nowait(None)

    @staticmethod
    async def _events(listener: _Listener) -> AsyncIterator[bytes]:
        while (event := await listener.waiting.get()) is not None:
            yield event


def _recently(cell: Any) -> dict[str, Any]:
    return {
        "routed": cell.routed,
        "attempts": cell.attempts,
        "failed": cell.failed,
        "cost_usd": cell.cost_usd,
        "quality": share_of(cell.quality, cell.graded),
    }


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), orjson.dumps(data))
