"""What callers have spent of their budgets: reserved before a call at its worst, booked when its outcome is known.

A fold over the log's outcomes, so that after a restart it equals their sum. Counts in whole tokens and in whole
millionths of a millionth of a USD: sums do not depend on the order. Never knows prices, HTTP or how a call is made.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from heapq import nlargest
from math import ceil
from typing import TYPE_CHECKING, Any, Final, NoReturn
from urllib.parse import quote

from serving.access.counters import (
    OK,
    SPENT,
    UNITS_PER_USD,
    WARNED,
    Counter,
    Held,
    Least,
    Reservation,
    amount_of,
    exact,
    over,
    unit,
    units,
    used,
)
from serving.access.principal import Principal
from serving.access.scopes import member_of, window_of
from serving.errors import BudgetExhausted, Unavailable

if TYPE_CHECKING:
    from bandit.types import Feedback, Outcome
    from serving.access.budget_settings import BudgetEntry
    from serving.records import Record

__all__ = ["Ledger", "Notice", "payer", "refused"]

_SHOWN: Final = 1_000  # counters of one budget in a list, the dearest first
_NOBODY: Final = Principal()
Row = Mapping[str, Any]
Notice = dict[str, Any]


class Ledger:
    """The budgets of the configuration. `changed` and `outcome` alone change what was spent; `ts` is unix seconds.

    `notify` is told, while the service runs, when a budget is warned of, spent or first refuses a call in a window.
    """

    subject: Final = "budgets"

    def __init__(self, entries: Sequence[BudgetEntry] = (), *, max_counters: int = 100_000) -> None:
        self._entries: tuple[BudgetEntry, ...] = ()
        self._overrides: dict[str, float | int] = {}
        self._counters: dict[tuple[int, str], Counter] = {}
        self._swept_at = 0.0
        self.configure(entries, max_counters=max_counters)
        self.notify: Callable[[BudgetEntry, Notice], None] | None = None

    def configure(self, entries: Sequence[BudgetEntry], *, max_counters: int) -> None:
        """Have these budgets from now on. What was spent stands as after a restart, and what is set aside stays so."""
        before, kept = [self._form(i) for i in range(len(self._entries))], self._counters
        self._entries, self._max_counters, self._counters = tuple(entries), max_counters, {}
        forms = {self._form(i): i for i in range(len(self._entries))}
        for counter in kept.values():
            i = forms.get(before[counter.budget])
            if i is not None:
                counter.budget = i
                self._counters[i, counter.member] = counter
        names = {entry.name for entry in entries}
        self._overrides = {name: limit for name, limit in self._overrides.items() if name in names}
        self._limits = [0] * len(self._entries)
        for i in range(len(self._entries)):
            self._set_limit(i)

    # --- a call

    async def reserve(self, principal: Principal, usd: float | None, tokens: int, ts: float) -> Reservation:
        """Set aside the most that an attempt can cost, in all budgets it concerns or in none; raises BudgetExhausted.

        `usd` None: the cost is unknown, and a budget in USD only refuses once it is spent.
        """
        if not self._entries:
            return Reservation()
        parts: list[tuple[Counter, int]] = []
        hard: list[tuple[Counter, int]] = []
        for i, member in self._concerning(principal):
            entry, counter = self._entries[i], self._counter(i, member, ts)
            amount = tokens if entry.usd is None else 0 if usd is None else ceil(usd * UNITS_PER_USD)
            parts.append((counter, amount))
            if entry.kind == "hard":
                hard.append((counter, amount))
        held = await self._hold(hard, ts) if hard else ()
        for counter, amount in parts:
            counter.reserved += amount
        return Reservation(parts, bool(hard), held)

    def release(self, reservation: Reservation) -> None:
        """Give back what was set aside, in the step in which the outcome is booked; a second time does nothing."""
        parts, reservation.parts = reservation.parts, []
        for counter, amount in parts:
            counter.reserved -= amount

    async def _hold(self, wanted: Sequence[tuple[Counter, int]], ts: float) -> Sequence[Held]:
        """Whether there is room for all of it, and what is held of it outside this process; raises BudgetExhausted."""
        for counter, amount in wanted:
            left = self._limits[counter.budget] - counter.spent - counter.reserved
            if amount > left or left <= 0:
                self._refuse(counter, amount, counter.spent, counter.reserved, ts)
        return ()

    def headers(self, principal: Principal, ts: float) -> dict[str, str]:
        """What a caller is told with an answer: the least that is left in hard budgets in USD, and warnings."""
        told: dict[str, str] = {}
        warnings: list[str] = []
        least: int | None = None
        for i, member in self._concerning(principal):
            entry, counter = self._entries[i], self._counters.get((i, member))
            spent = 0 if counter is None or over(counter, ts) else counter.spent
            if entry.usd is not None and entry.kind == "hard":
                reserved = 0 if counter is None else counter.reserved
                left = max(0, self._limits[i] - spent - reserved)
                least = left if least is None else min(least, left)
            if spent >= entry.warn_at * self._limits[i]:
                share = spent / self._limits[i]
                warnings.append(f"{quote(entry.name, safe=':*@')} spent={share:.4g} kind={entry.kind}")
        if least is not None:
            told["x-pointsman-budget-remaining-usd"] = f"{least / UNITS_PER_USD:.9f}"
        if warnings:
            told["x-pointsman-budget-warning"] = ", ".join(warnings[:5])
        return told

    # --- the fold

    def changed(self, row: Row) -> None:
        """A limit was changed while the service runs; None takes it back to that of the configuration."""
        if row["what"] != "limit":
            return
        name, limit = row["after"]["budget"], row["after"]["limit"]
        for i, entry in enumerate(self._entries):
            if entry.name == name:
                self._overrides.pop(name, None)
                if limit is not None:
                    self._overrides[name] = limit
                self._set_limit(i)

    def decided(self, record: Record) -> None:
        """A decision has cost nothing yet."""

    def outcome(self, record: Record, outcome: Outcome) -> Sequence[Row]:
        """Book what is known of an attempt's cost on everyone it concerns; a shadow's on the budgets of all alone."""
        if not self._entries:
            return ()
        mode = record.decision.mode
        rows: list[Row] = []
        for i, member in self._concerning(payer(record)):
            counter = self._counter(i, member, outcome.ts, booking=True)
            if outcome.ts < counter.start:
                continue  # its own window is over, as it will be at a replay
            entry = self._entries[i]
            counter.requests += outcome.attempt == 0
            counter.saved += exact(outcome.saved_usd)
            if mode == "cached":
                continue
            counter.unpriced += outcome.cost_usd is None and outcome.status == "ok"
            counter.spent += used(entry, outcome)
            rows += self._crossings(i, counter, outcome.ts)
        return rows

    def feedback(self, record: Record, feedback: Feedback) -> Sequence[Row]:
        """Feedback costs nothing."""
        del record, feedback
        return ()

    def state(self) -> dict[str, Any]:
        """All that was booked, and the limits that were changed, as JSON."""
        return {
            "limits": dict(self._overrides),
            "counters": [
                [*self._form(c.budget), c.member, c.start, c.spent, c.requests, c.unpriced, c.saved, c.told]
                for c in self._counters.values()
            ],
        }

    def load(self, state: Row) -> None:
        """Be what `state` says; budgets that are no longer there, or count otherwise now, are left out."""
        names = {entry.name for entry in self._entries}
        self._overrides = {name: limit for name, limit in state["limits"].items() if name in names}
        forms = {self._form(i): i for i in range(len(self._entries))}
        self._counters = {}
        for *form, member, start, spent, requests, unpriced, saved, told in state["counters"]:
            i = forms.get(tuple(form))
            if i is not None:
                end = window_of(self._entries[i].per, start)[1]
                kept = Counter(i, member, start, end, spent, 0, requests, unpriced, saved, told)
                self._counters[i, member] = kept
        for i in range(len(self._entries)):
            self._set_limit(i)

    # --- an operator

    def listed(self, ts: float) -> list[dict[str, Any]]:
        """Every budget with what is spent of it, as JSON; of many counters those that spent most."""
        by_budget: list[list[Counter]] = [[] for _ in self._entries]
        for counter in self._counters.values():
            by_budget[counter.budget].append(counter)
        return [self._shown(i, counters, ts) for i, counters in enumerate(by_budget)]

    async def listed_of_all(self, ts: float) -> list[dict[str, Any]]:
        """As `listed`, with what is set aside by all processes of the service."""
        return self.listed(ts)

    def least_left(self, ts: float) -> list[Least]:
        """Every budget in a few numbers that name nobody."""
        least, members = list(self._limits), [0] * len(self._limits)
        for (i, _), counter in self._counters.items():
            spent = 0 if over(counter, ts) else counter.spent
            least[i] = min(least[i], max(0, self._limits[i] - spent - counter.reserved))
            members[i] += 1
        return [
            Least(entry.name, unit(entry), least[i] / self._limits[i], amount_of(entry, least[i]), members[i])
            for i, entry in enumerate(self._entries)
        ]

    def entry(self, name: str) -> BudgetEntry | None:
        """The budget called `name`."""
        return next((entry for entry in self._entries if entry.name == name), None)

    def limit(self, name: str) -> float | int | None:
        """Its limit now, in its own unit."""
        limits = {entry.name: amount_of(entry, self._limits[i]) for i, entry in enumerate(self._entries)}
        return limits.get(name)

    @property
    def overrides(self) -> dict[str, float]:
        """By budget: the limit that was set while the service runs."""
        return dict(self._overrides)

    def _shown(self, i: int, counters: list[Counter], ts: float) -> dict[str, Any]:
        entry, limit = self._entries[i], self._limits[i]

        def line(counter: Counter | None) -> dict[str, Any]:
            start, end = window_of(entry.per, ts)
            if counter is None or over(counter, ts):
                reserved, member = (0, "") if counter is None else (counter.reserved, counter.member)
                counter = Counter(i, member, start, end, reserved=reserved)
            left = limit - counter.spent - counter.reserved
            return {
                "member": counter.member or None,
                "spent": amount_of(entry, counter.spent),
                "reserved": amount_of(entry, counter.reserved),
                "remaining": amount_of(entry, max(0, left)),
                "requests": counter.requests,
                "unpriced_calls": counter.unpriced,
                "saved_usd": counter.saved / UNITS_PER_USD,
                "window_start": counter.start,
                "resets_at": counter.end,
            }

        top = nlargest(_SHOWN, counters, key=lambda c: (not over(c, ts), c.spent))
        lines = [line(counter) for counter in top]
        if not lines and (entry.scope == "all" or entry.match != "*"):
            lines = [line(None) | {"member": None if entry.scope == "all" else entry.match}]
        return {
            **entry.model_dump(include={"name", "scope", "match", "tier", "per", "kind", "warn_at"}),
            "unit": unit(entry),
            "limit": amount_of(entry, limit),
            "configured_limit": entry.usd if entry.tokens is None else entry.tokens,
            "webhook": entry.webhook is not None,
            "counters": lines,
            "counters_left_out": len(counters) - len(top),
        }

    # --- counters

    def _concerning(self, principal: Principal) -> list[tuple[int, str]]:
        found = ((i, member_of(e.scope, e.match, e.tier, principal)) for i, e in enumerate(self._entries))
        return [(i, member) for i, member in found if member is not None]

    def _counter(self, i: int, member: str, ts: float, *, booking: bool = False) -> Counter:
        """The counter of the window that `ts` is in, or of a later one. A booking always finds a place."""
        counter = self._counters.get((i, member))
        if counter is None:
            if not booking and len(self._counters) >= self._max_counters:
                self._make_room(ts)
            counter = self._counters[i, member] = Counter(i, member, *window_of(self._entries[i].per, ts))
        elif over(counter, ts):
            counter.roll(*window_of(self._entries[i].per, ts))
        return counter

    def _make_room(self, ts: float) -> None:
        """Forget counters whose window is over; none whose window is not, or its budget would begin anew."""
        if ts - self._swept_at >= 1.0:  # a look at all of them takes time
            self._swept_at = ts
            gone = [key for key, counter in self._counters.items() if over(counter, ts) and not counter.reserved]
            for key in gone:
                del self._counters[key]
        if len(self._counters) >= self._max_counters:
            raise Unavailable(f"{self._max_counters} budgets are counted, the most metering.max_counters allows")

    def _crossings(self, i: int, counter: Counter, ts: float) -> list[Row]:
        entry, limit = self._entries[i], self._limits[i]
        reached = SPENT if counter.spent >= limit else WARNED if counter.spent >= entry.warn_at * limit else OK
        if reached <= counter.told:
            return []
        counter.told = reached
        notice = self._notice(entry, counter, "spent" if reached == SPENT else "warned", ts)
        if self.notify is not None:
            self.notify(entry, notice)
        return [
            {
                "ts": ts,
                "subject": self.subject,
                "what": notice["event"],
                "pool": None,
                "model": None,
                "before": None,
                "after": notice,
                "reason": f"{counter.spent / limit:.1%} of the budget is spent",
                "by": None,
            }
        ]

    def _refuse(self, counter: Counter, amount: int, spent: int, reserved: int, ts: float) -> NoReturn:
        entry = self._entries[counter.budget]
        notice = self._notice(entry, counter, "refused", ts)
        notice |= {"spent": amount_of(entry, spent), "reserved": amount_of(entry, reserved)}
        if not counter.refused:
            counter.refused = True
            if self.notify is not None:
                self.notify(entry, notice)
        of, until = unit(entry), counter.end
        asked, limit = amount_of(entry, amount), notice["limit"]
        message = (
            f"budget {entry.name!r} has no room for this call, which may take {asked:.6g} {of}: of {limit:.6g} {of}"
            f" {notice['spent']:.6g} are spent and {notice['reserved']:.6g} reserved"
            + ("" if until is None else f"; it starts anew at {until:.0f} (unix seconds)")
        )
        raise BudgetExhausted(message, notice | {"needed": asked})

    def _notice(self, entry: BudgetEntry, counter: Counter, event: str, ts: float) -> Notice:
        return {
            "event": event,
            "ts": ts,
            "budget": entry.name,
            "scope": entry.scope,
            "member": counter.member or None,
            "unit": unit(entry),
            "kind": entry.kind,
            "limit": amount_of(entry, self._limits[counter.budget]),
            "spent": amount_of(entry, counter.spent),
            "reserved": amount_of(entry, counter.reserved),
            "window_start": counter.start,
            "resets_at": counter.end,
        }

    def _set_limit(self, i: int) -> None:
        entry = self._entries[i]
        configured = entry.usd if entry.tokens is None else entry.tokens
        limit = self._limits[i] = units(entry, self._overrides.get(entry.name, configured))
        for counter in self._counters.values():
            if counter.budget == i:  # below the new limit it may warn again
                counter.refused = False
                reached = SPENT if counter.spent >= limit else WARNED if counter.spent >= entry.warn_at * limit else OK
                counter.told = min(counter.told, reached)

    def _form(self, i: int) -> tuple[str, ...]:
        entry = self._entries[i]
        return entry.name, entry.scope, unit(entry), entry.per


def refused(notice: Notice) -> bool:
    """Whether it says that a call was refused; else it is about what is booked."""
    return bool(notice["event"] == "refused")


def payer(record: Record) -> Principal:
    """Whose budgets a call's outcomes are booked on."""
    return _NOBODY if record.decision.mode == "shadow" else record.labels.principal
