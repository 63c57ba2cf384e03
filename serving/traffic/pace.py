"""Which calls may begin now, from how late the event loop is.

Pure arithmetic. It is told how long turns of the loop took and which calls began, never how long an upstream took: a
slow upstream needs many calls at once and costs this service nothing.
"""

from __future__ import annotations

__all__ = ["Pace"]

_AT_ONCE = 8  # calls that begin between two looks at a loop that is in time
_AHEAD = 16  # more of those that others have to wait for


class Pace:
    """While the loop is late only calls that go ahead of others begin; the others, when it has little else to do.

    The loop is late when one of its turns took longer than `target_s`. Between two looks at it only so many begin, so
    that after a pause not all that came meanwhile begin together, and come back together from their upstreams.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self._left = _AT_ONCE
        self.turn_s = 0.0

    def turn(self, took_s: float) -> bool:
        """Note how long one turn of the loop took; whether it is in time."""
        self.turn_s = took_s
        in_time = took_s <= self._target_s
        self._left = _AT_ONCE if in_time else 0
        return in_time

    def may_begin(self, *, ahead: bool) -> bool:
        """Whether one more call may begin now; `ahead`: others have to wait for it."""
        return self._left > (-_AHEAD if ahead else 0)

    def began(self) -> None:
        """One more call has begun."""
        self._left -= 1
