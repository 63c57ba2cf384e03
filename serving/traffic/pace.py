"""Whether a call that yields to others may begin now, from how busy the event loop is.

Pure arithmetic. It is told how long turns of the loop took and which calls began, never how long an upstream took: a
slow upstream needs many calls at once and costs this service nothing.
"""

from __future__ import annotations

__all__ = ["Pace"]

_WINDOW_S = 0.1  # over which it is judged how busy the loop is
_BUSY = 0.75  # share of the time; below it nobody is held up: that is where queues begin to grow fast
_AT_ONCE = 8  # calls that begin between two looks at a loop that is in time


class Pace:
    """On a busy loop calls that yield to others begin when it has nothing else to do.

    A turn of the loop that took longer than `target_s` was late. Once three quarters of the time are late, a call that
    waits begins when the loop has been in time for `target_s`, one at a time: so it is only what would have been idle
    that is given away, and what came during a pause does not begin together, and come back together from its upstreams.
    """

    def __init__(self, target_s: float) -> None:
        self._target_s = target_s
        self._left = _AT_ONCE
        self._in_time_s = 0.0
        self.busy_share = 0.0

    def turn(self, took_s: float, since_s: float) -> None:
        """Note how long one turn of the loop took, which stands for the time since the last one that was noted."""
        late = took_s > self._target_s
        self.busy_share += min(1.0, since_s / _WINDOW_S) * (late - self.busy_share)
        self._left = 0 if late else _AT_ONCE
        self._in_time_s = 0.0 if late else self._in_time_s + took_s

    def may_begin(self, *, waited: bool = False) -> bool:
        """Whether one more call may begin now; `waited`: it has waited for that."""
        if self.busy_share < _BUSY:
            return True
        return self._left > 0 and (not waited or self._in_time_s >= self._target_s)

    def began(self) -> None:
        """One more call has begun."""
        self._left -= 1
        self._in_time_s = 0.0
