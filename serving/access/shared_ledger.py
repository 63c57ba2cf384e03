"""The budgets of `serving.access.ledger`, of one service that runs in several workers: what is left is asked of all.

The fold goes on in every worker and is what is shown. Whether a hard budget has room is decided on the server of the
store, by what was booked there in the transaction that took each outcome, and by what living workers hold.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import orjson

from serving.access.counters import Reservation, amount_of, exact, used
from serving.access.ledger import Ledger, payer
from serving.access.scopes import window_of
from serving.access.shared_scripts import HOLD, SUMS, UNDO
from serving.errors import Unavailable
from serving.store import StoreError

if TYPE_CHECKING:
    from bandit.types import Outcome
    from serving.access.budget_settings import BudgetEntry
    from serving.access.counters import Counter, Held
    from serving.access.shared_scripts import Scripts, SharedCounts
    from serving.records import Record
    from serving.store import Tally

__all__ = ["SharedLedger"]

_log = logging.getLogger("pointsman.shared")
_MOST: Final = 2**62  # of whole units in one amount: what is kept beside the log are 64 bits
_DAY_S: Final = 86_400.0
_HELD_S: Final = 2 * _DAY_S  # longer than any call is under way
_TOTAL_S: Final = 400 * _DAY_S  # a budget without an end that nobody touched for so long begins with the fold's sum
_UNDONE_WITHIN_S: Final = 30.0  # below what HOLD remembers
_UNDO_PAUSE_S: Final = 0.5
_ASKED: Final = 1_000  # counters at a time: the server does nothing else meanwhile


class SharedLedger(Ledger):
    """Asks the server once for an attempt that some hard budget concerns.

    A worker that ends without a word gives back what it held once `alive` is gone; one that merely stood still that
    long may then spend, at most, what it holds on top.
    """

    def __init__(
        self, store: SharedCounts, scripts: Scripts, entries: Sequence[BudgetEntry] = (), *, max_counters: int = 100_000
    ) -> None:
        super().__init__(entries, max_counters=max_counters)
        self._store, self._scripts, self._numbers = store, scripts, count(1)
        self._doubtful: deque[tuple[float, str, Sequence[Held]]] = deque()
        self._undoing: asyncio.Task[None] | None = None

    def booked(self, record: Record, outcome: Outcome) -> None:
        """An outcome's event was just appended: what the fold will book is counted if it is taken."""
        if record.decision.mode == "cached":
            return
        booked: list[Tally] = []
        for i, member in self._concerning(payer(record)):
            entry = self._entries[i]
            amount = min(_MOST, used(entry, outcome))
            if amount:
                start, end = window_of(entry.per, outcome.ts)
                booked.append((self._spent_key(i, member, start), "spent", amount, _expiry(end, outcome.ts)))
        if booked:
            self._store.count(booked, with_append=True)

    def release(self, reservation: Reservation) -> None:
        """As in one process, for all of them in one transaction with what is appended in this turn."""
        super().release(reservation)
        held, reservation.held = reservation.held, ()
        if held:
            expires_at = time.time() + _HELD_S
            try:
                self._store.count([(key, self._store.writer, -amount, expires_at) for key, amount in held])
            except StoreError as error:  # it will never write again: what is held ends with this process
                _log.warning("not given back: %s", error)

    async def listed_of_all(self, ts: float) -> list[dict[str, Any]]:
        """As `listed`, but what is set aside of hard budgets is what all workers hold; raises Unavailable."""
        shown = self.listed(ts)
        lines = [
            (_key(self._held_key(i, line["member"] or "")), entry, self._limits[i], line)
            for i, (entry, budget) in enumerate(zip(self._entries, shown, strict=True))
            if entry.kind == "hard"
            for line in budget["counters"]
        ]
        for first in range(0, len(lines), _ASKED):
            part = lines[first : first + _ASKED]
            sums = await self._scripts.run(SUMS, [key for key, *_ in part], [self._scripts.prefix])
            for (_, entry, limit, line), held in zip(part, map(int, sums), strict=True):
                spent = line["spent"] if entry.usd is None else exact(line["spent"])
                line["reserved"] = amount_of(entry, held)
                line["remaining"] = amount_of(entry, max(0, limit - spent - held))
        return shown

    async def close(self) -> None:
        """No more is undone: what this process holds ends with it."""
        if self._undoing is not None:
            self._undoing.cancel()
            await asyncio.gather(self._undoing, return_exceptions=True)

    async def _hold(self, wanted: Sequence[tuple[Counter, int]], ts: float) -> Sequence[Held]:
        hold, held = f"hold:{self._store.writer}:{next(self._numbers)}", []
        keys, args = [f"known:{self._store.writer}", hold], [self._scripts.prefix, self._store.writer]
        for counter, amount in wanted:
            i = counter.budget
            part = (self._held_key(i, counter.member), min(_MOST, amount))
            held.append(part)
            keys += [_key(self._spent_key(i, counter.member, counter.start)), _key(part[0])]
            folded, expires_at = min(_MOST, counter.spent), int(_expiry(counter.end, ts))
            args += [str(self._limits[i]), str(part[1]), str(folded), str(expires_at)]
        try:
            refused, *sums = await self._scripts.run(HOLD, keys, args)
        except BaseException:  # whoever gave up waiting does not know whether it was done
            self._doubt(hold, held)
            raise
        if refused:
            counter, amount = wanted[refused - 1]
            if self._counters.get((counter.budget, counter.member)) is not counter:
                raise Unavailable("a budget of this call was changed meanwhile; try again")
            self._refuse(counter, amount, int(sums[0]), int(sums[1]), ts)
        return held

    def _doubt(self, hold: str, held: Sequence[Held]) -> None:
        self._doubtful.append((time.monotonic(), hold, held))
        if self._undoing is None or self._undoing.done():
            self._undoing = asyncio.create_task(self._undo())

    async def _undo(self) -> None:
        """Undo holds one after the other, the oldest first; one that cannot be for too long stays until we end."""
        while self._doubtful:
            since, hold, held = self._doubtful[0]
            try:
                keys, amounts = [_key(key) for key, _ in held], [-amount for _, amount in held]
                await self._scripts.run(UNDO, [hold, *keys], [self._store.writer, *amounts])
            except Unavailable:
                if time.monotonic() - since < _UNDONE_WITHIN_S:
                    await asyncio.sleep(_UNDO_PAUSE_S)
                    continue
                _log.error("a reservation may be held until this process ends: the store did not answer")
            self._doubtful.popleft()

    def _held_key(self, i: int, member: str) -> str:
        return f"held:{_text([*self._form(i), member])}"

    def _spent_key(self, i: int, member: str, start: float) -> str:
        return f"spent:{_text([*self._form(i), member, int(start)])}"


def _key(counter: str) -> str:
    return f"count:{counter}"  # where the store keeps it


def _text(parts: Sequence[str | int]) -> str:
    return orjson.dumps(parts).decode()


def _expiry(end: float | None, ts: float) -> float:
    return ts + _TOTAL_S if end is None else end + _DAY_S
