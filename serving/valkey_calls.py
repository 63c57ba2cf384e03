"""One process's appends between being called and having their place: committed, placed, refused, and who waits.

An append is known to be committed by the commit's answer or by its events' coming back in the stream, whichever is
first. This file knows nothing of servers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from serving.store import Superseded

__all__ = ["Call", "Calls"]


@dataclass(slots=True, eq=False)
class Call:
    """One append: `left` of its `events` are still to come back; `decision_id` is named if it is refused."""

    events: int
    left: int
    decision_id: str
    placed: Callable[[], None] | None
    future: asyncio.Future[None] | None
    seq: int = 0  # of its last event, once it is known to be committed


class Calls:
    """The appends that are not done with, by their number. `followed`: the last seq that was handed over."""

    def __init__(self, position: int) -> None:
        self.known = self.followed = position  # known: committed for all this process knows
        self.pending = 0
        self.following = False
        self._open: dict[int, Call] = {}
        self._refused: list[tuple[int, Call]] = []

    def begin(self, number: int, call: Call) -> None:
        """An append was called; numbers rise."""
        self._open[number] = call
        self.pending += call.events

    def came_back(self, number: int, seq: int) -> None:
        """An event of one's own was read from the stream: with its last one, the append has its place."""
        call = self._open.get(number)
        if call is not None:
            call.left -= 1
            if call.left > 0:
                return
            del self._open[number]
            self._mark_committed(call, seq)
        self.reached(seq)
        if call is not None:
            try:
                if call.placed is not None:
                    call.placed()
            finally:  # it is committed, whatever that makes of it
                _resolve(call)

    def reached(self, seq: int) -> None:
        """All up to `seq` was handed over, or will be in this turn of the loop."""
        self.followed = seq
        self.known = max(self.known, seq)
        while self._refused and self._refused[0][0] <= seq:
            _refuse(self._refused.pop(0)[1])

    def answered(self, numbers: list[int], refused: set[int], position: int) -> None:
        """A commit of these appends left the log at `position`."""
        taken = [number for number in numbers if number not in refused]
        seq = position - sum(call.events for number in taken if (call := self._open.get(number)))
        for number in numbers:
            call = self._open.get(number)
            if call is None:  # it has come back already
                continue
            if number in refused:
                del self._open[number]
                self.pending -= call.events
                self._defer_refusal(position, call)
                continue
            seq += call.events
            self._mark_committed(call, seq)
            if not (self.following and call.left and seq > self.followed):
                _resolve(call)
                if call.placed is None or not call.left or seq <= self.followed:
                    del self._open[number]
        self.known = max(self.known, position)

    def begin_following(self, after_seq: int) -> None:
        """Events up to `after_seq` were read in another way."""
        self.following, self.followed = True, after_seq
        self.known = max(self.known, after_seq)
        for number in [number for number, call in self._open.items() if 0 < call.seq <= after_seq]:
            del self._open[number]

    def end_following(self) -> None:
        """Nothing comes back any more: what is committed is all that can be waited for."""
        self.following = False
        for call in self._open.values():
            if call.seq:
                _resolve(call)
        for _, call in self._refused:
            _refuse(call)
        self._refused.clear()

    def fail(self, error: Exception) -> None:
        """Nothing will be committed any more: all who wait are told."""
        waiting = [call for _, call in self._refused] + list(self._open.values())
        self._open.clear()
        self._refused.clear()
        for call in waiting:
            if call.future is not None and not call.future.done():
                call.future.set_exception(error)

    def _mark_committed(self, call: Call, seq: int) -> None:
        if not call.seq:
            call.seq = seq
            self.pending -= call.events

    def _defer_refusal(self, position: int, call: Call) -> None:
        """Who is refused looks again at once, and must find what took its place."""
        if self.following and position > self.followed:
            self._refused.append((position, call))
        else:
            _refuse(call)


def _resolve(call: Call) -> None:
    if call.future is not None and not call.future.done():  # its waiter may have gone
        call.future.set_result(None)


def _refuse(call: Call) -> None:
    if call.future is not None and not call.future.done():
        call.future.set_exception(Superseded(call.decision_id))
