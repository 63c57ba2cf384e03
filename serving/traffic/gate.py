"""The gate in front of inference calls: so many run, so many wait, the rest are told at once to come back later.

Owns places and the order in which they are given away. No task a call, no lock, and nothing allocated for a call that
finds a place but its ticket. It must never know who calls, nor what for: a priority is a number, higher goes first.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Self

from serving.errors import Overloaded
from serving.traffic.overload_settings import OverloadSettings
from serving.traffic.pace import Pace

__all__ = ["Gate", "Ticket"]

_LOOK_S = 0.001  # between two looks at the loop, while calls run or wait
_SELDOM_S = 0.05  # the same while no call has come of late that yields to others
_REMEMBERED_S = 10.0  # after a call of the highest priority, those of lower ones yield for so long
_RATE_WEIGHT = 0.05  # of the newest gap between two waiters that get a place
Shed = Callable[[int, str], None]


class _Waiter:
    __slots__ = ("future", "level", "timer")

    def __init__(self, future: asyncio.Future[None], level: _Level) -> None:
        self.future, self.level = future, level
        self.timer: asyncio.TimerHandle | None = None


class _Level:
    """The waiters of one priority, oldest first; since when there has always been one."""

    __slots__ = ("priority", "since", "waiters")

    def __init__(self, priority: int) -> None:
        self.priority = priority
        self.waiters: OrderedDict[_Waiter, None] = OrderedDict()
        self.since = 0.0


class Ticket:
    """A call's way through the gate: inside, it has a place. `waited_s` is how long it took to get it."""

    __slots__ = ("_gate", "_longest_s", "_priority", "waited_s")

    def __init__(self, gate: Gate, priority: int, longest_s: float) -> None:
        self._gate, self._priority, self._longest_s = gate, priority, longest_s
        self.waited_s = 0.0

    async def __aenter__(self) -> Self:
        gate = self._gate
        if gate.passes(self._priority):
            gate.taken()
        else:
            self.waited_s = await gate.wait(self._priority, self._longest_s)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._gate.left()


class Gate:
    """Gives away places by priority, first come first served within one. `clock` is monotonic, in seconds.

    `shed` is told the priority of each call that gets none and why: `full`, `displaced` (by one of a higher priority)
    or `late`. A priority whose queue has not been empty for `queue_timeout_s` is offered more than there is room for:
    its calls then wait `standing_timeout_s` at most, since a longer queue makes all of them late and serves no more of
    them (Nichols and Jacobson, "Controlling queue delay", 2012; Maurer, "Fail at scale", 2015).

    Where the settings say so, calls also wait while the event loop is busy if calls of a higher priority have come of
    late. What there is to do for those is then done in time. Without any, waiting would serve nobody.
    """

    def __init__(
        self, settings: OverloadSettings, *, clock: Callable[[], float], rng: random.Random, shed: Shed
    ) -> None:
        self._clock, self._rng, self._shed = clock, rng, shed
        self.in_use = self.waiting = 0
        self._levels: dict[int, _Level] = {}  # as many as the tiers have priorities; highest first
        self._highest, self._highest_at = 0, -math.inf  # priority that has come of late, and when it last did
        self._yielded_at = -math.inf  # when one last came that yields to it
        self._admitted_at: float | None = None
        self._gap_s: float | None = None  # between two waiters that get a place
        self._watch: asyncio.Handle | None = None
        self._watching = False  # whether the very next turn is looked at
        self._looked_at = clock()
        self.configure(settings)

    def configure(self, settings: OverloadSettings) -> None:
        """Have these limits from now on; what runs and what waits goes on."""
        self._settings = settings
        self.pace = Pace(settings.target_lag_ms / 1000.0) if settings.adaptive == "pace" else None
        self.limit = settings.max_concurrent
        self._admit_all()

    def entered(self, priority: int, longest_s: float | None = None) -> Ticket:
        """`async with gate.entered(...)`: a place, or Overloaded, after `longest_s` or the queue's own time at most."""
        own_s = self._settings.queue_timeout_s
        return Ticket(self, priority, own_s if longest_s is None else min(own_s, longest_s))

    def passes(self, priority: int) -> bool:
        """Whether a call of that priority, which has just come, need not wait."""
        if self.pace is not None:
            now = self._clock()
            if priority >= self._highest or now - self._highest_at > _REMEMBERED_S:
                self._highest, self._highest_at = priority, now
            else:
                self._yielded_at = now
        return not (self.waiting and self._first().priority >= priority) and self._room(priority)

    def taken(self) -> None:
        """One more call runs."""
        self.in_use += 1
        if self.pace is not None:
            self.pace.began()
            if self._watch is None:
                self._looked_at = self._clock()
                self._watch = asyncio.get_running_loop().call_later(_LOOK_S, self._first_turn)

    def left(self) -> None:
        """One call fewer runs; whoever waits first takes its place."""
        self.in_use -= 1
        if self.waiting:
            self._admit()

    async def wait(self, priority: int, longest_s: float) -> float:
        """Wait for a place and take it; how long that took, in seconds. Raises Overloaded."""
        level = self._levels.get(priority) or self._new_level(priority)
        if self.waiting >= self._settings.queue_size:
            self._make_room(priority)
        began = self._clock()
        if not level.waiters:
            level.since = began
        elif began - level.since > self._settings.queue_timeout_s:
            longest_s = min(longest_s, self._settings.standing_timeout_s)
            if self._ahead_of(priority) * (self._gap_s or 0.0) > longest_s:  # it would be told so later, and for more
                self._shed(priority, "full")
                raise self._overloaded()
        loop = asyncio.get_running_loop()
        waiter = _Waiter(loop.create_future(), level)
        level.waiters[waiter] = None
        self.waiting += 1
        waiter.timer = loop.call_later(longest_s, self._late, waiter)
        if self.pace is not None and self.in_use < self.limit and not self._watching:
            self.close()
            self._first_turn()
        try:
            await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                self.left()  # the place came in the same turn in which the caller went away
            else:
                self._forget(waiter)
            raise
        return self._clock() - began

    def close(self) -> None:
        """Look at the loop no more."""
        if self._watch is not None:
            self._watch.cancel()

    def _admit(self) -> None:
        """Give the one who waits first a place, if there is one."""
        while self.waiting and self._room((level := self._first()).priority, waited=True):
            waiter = next(iter(level.waiters))
            self._forget(waiter)
            if waiter.future.done():
                continue  # its caller has just gone away, and has not heard of it yet
            self._note_rate()
            self.taken()
            waiter.future.set_result(None)
            return

    def _admit_all(self) -> None:
        """Give all who may have one a place: there may be more of them than before."""
        before = -1
        while self.waiting != before:
            before = self.waiting
            self._admit()

    def _room(self, priority: int, *, waited: bool = False) -> bool:
        if self.in_use >= self.limit:
            return False
        if self.pace is None or priority >= self._highest or self._forgotten():
            return True
        return self.pace.may_begin(waited=waited)

    def _forgotten(self) -> bool:
        return self._clock() - self._highest_at > _REMEMBERED_S

    def _first(self) -> _Level:
        return next(level for level in self._levels.values() if level.waiters)

    def _ahead_of(self, priority: int) -> int:
        return sum(len(level.waiters) for level in self._levels.values() if level.priority >= priority)

    def _note_rate(self) -> None:
        now = self._clock()
        if self._admitted_at is not None:
            gap_s = now - self._admitted_at
            old_s = gap_s if self._gap_s is None else self._gap_s
            self._gap_s = old_s + _RATE_WEIGHT * (gap_s - old_s)
        # A gap that nobody waits through says nothing about how fast places come free.
        self._admitted_at = now if self.waiting else None

    def _forget(self, waiter: _Waiter) -> None:
        if waiter in waiter.level.waiters:
            del waiter.level.waiters[waiter]
            self.waiting -= 1
            if waiter.timer is not None:
                waiter.timer.cancel()

    def _late(self, waiter: _Waiter) -> None:
        self._turn_away(waiter, "late")

    def _make_room(self, priority: int) -> None:
        """Shed the newest of the lowest priority that waits, or raise Overloaded where nobody has a lower one."""
        lowest = next((level for level in reversed(self._levels.values()) if level.waiters), None)
        if lowest is None or lowest.priority >= priority:
            self._shed(priority, "full")
            raise self._overloaded()
        self._turn_away(next(reversed(lowest.waiters)), "displaced")

    def _turn_away(self, waiter: _Waiter, why: str) -> None:
        self._forget(waiter)
        if not waiter.future.done():
            self._shed(waiter.level.priority, why)
            waiter.future.set_exception(self._overloaded())

    def _overloaded(self) -> Overloaded:
        # When those waiting now will have had their turn, at the rate at which they get it; up to twice that, so that
        # those told so do not all come back at once.
        drain_s = (self.waiting + 1) * (self._gap_s or 0.0)
        bounded = min(max(1.0, drain_s), self._settings.max_retry_after_s / 2.0)
        retry_after_s = min(bounded * (1.0 + self._rng.random()), self._settings.max_retry_after_s)
        return Overloaded("more calls than the service can serve now; come back later", retry_after_s)

    def _new_level(self, priority: int) -> _Level:
        self._levels[priority] = level = _Level(priority)
        self._levels = dict(sorted(self._levels.items(), reverse=True))
        return level

    # One whole turn of the loop is measured: what was called soon runs before all that the network brings meanwhile,
    # and what that calls soon runs after it. While calls wait for the loop one turn after another is looked at, which
    # keeps it awake; else one now and then, and none while no call runs.

    def _first_turn(self) -> None:
        self._watching = True  # not begun anew by calls that come to wait: enough of them would put it off for ever
        self._watch = asyncio.get_running_loop().call_soon(self._turn_begun)

    def _turn_begun(self) -> None:
        self._watch = asyncio.get_running_loop().call_soon(self._turn_ended, self._clock())

    def _turn_ended(self, began: float) -> None:
        if self.pace is None:  # it has been switched off
            self._watch, self._watching = None, False
            return
        now, loop = self._clock(), asyncio.get_running_loop()
        self.pace.turn(now - began, now - self._looked_at)
        self._looked_at = now
        if self.waiting:
            self._admit()
        self._watching = self.waiting > 0 and self.in_use < self.limit
        if self._watching:
            self._watch = loop.call_soon(self._turn_ended, now)
        else:
            yields = now - self._yielded_at <= _REMEMBERED_S
            self._watch = loop.call_later(_LOOK_S if yields else _SELDOM_S, self._first_turn) if self.in_use else None
