"""When an endpoint is left alone: a circuit breaker with half-open probes.

Counts what attempts say of the endpoint itself. A caller's bad request is an answer, and an attempt that its caller
gave up says nothing: neither opens a breaker, and a probe that was given up leaves the next call to probe. What another
process has found out of the same endpoint may be adopted. The clock is an argument; nothing here waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Literal

from serving.failure_settings import BreakerSettings

__all__ = ["Breaker", "State"]

State = Literal["closed", "open", "half_open"]
_BUCKETS = 10  # of the window


class Breaker:
    """One endpoint's; `now` is a monotonic time in seconds.

    `moved` is told for how many seconds it has opened and how often in a row that was, or twice 0: it has closed.
    """

    def __init__(self, settings: BreakerSettings, moved: Callable[[float, int], None] | None = None) -> None:
        self._settings, self._moved = settings, moved
        self._buckets: deque[list[float]] = deque(maxlen=_BUCKETS)  # [end of its time, attempts, failures]
        self._open_until: float | None = None
        self._opened = 0  # times in a row
        self._probing = False

    def state(self, now: float) -> State:
        """Closed: calls pass; open: none does; half open: one may, to see."""
        if self._open_until is None:
            return "closed"
        return "open" if now < self._open_until else "half_open"

    def allows(self, now: float) -> bool:
        """Whether a call may be sent now."""
        return self._open_until is None or (now >= self._open_until and not self._probing)

    def wait_s(self, now: float) -> float:
        """Seconds until a call may pass; 0 where one may now."""
        return 0.0 if self._open_until is None else max(0.0, self._open_until - now)

    def begin(self) -> bool:
        """A call is sent; whether it is a probe, to be said again at its end."""
        probe = self._open_until is not None
        self._probing |= probe
        return probe

    def end(self, now: float, failed: bool | None, *, probe: bool) -> None:  # noqa: FBT001 - three-valued
        """What the call said of the endpoint; None: nothing, since its caller went away or gave it no time."""
        if probe:
            self._probing = False
        if failed is None or not self._settings.enabled:
            return
        if probe or self._open_until is not None:
            if probe and failed:
                self._open(now)
            elif not failed:  # whichever call it was, the endpoint serves
                self._close()
            return
        self._count(now, failed=failed)

    def adopt(self, now: float, open_s: float, opened: int) -> None:
        """What `moved` was told of another process's breaker holds here, too; `moved` is told nothing."""
        if not self._settings.enabled:
            return
        self._open_until = now + open_s if opened else None
        self._opened = opened
        self._buckets.clear()

    def _count(self, now: float, *, failed: bool) -> None:
        if not self._buckets or now >= self._buckets[-1][0]:
            self._buckets.append([now + self._settings.window_s / _BUCKETS, 0.0, 0.0])
        self._buckets[-1][1] += 1
        self._buckets[-1][2] += failed
        while self._buckets[0][0] < now - self._settings.window_s:
            self._buckets.popleft()
        calls = sum(bucket[1] for bucket in self._buckets)
        failures = sum(bucket[2] for bucket in self._buckets)
        if failed and calls >= self._settings.min_calls and failures >= self._settings.failure_share * calls:
            self._open(now)

    def _open(self, now: float) -> None:
        open_s = min(self._settings.max_open_s, self._settings.open_s * 2 ** min(self._opened, 30))
        self._open_until = now + open_s
        self._opened += 1
        self._buckets.clear()
        if self._moved is not None:
            self._moved(open_s, self._opened)

    def _close(self) -> None:
        was_open = self._open_until is not None  # or another process has closed it meanwhile
        self._open_until, self._opened = None, 0
        self._buckets.clear()
        if was_open and self._moved is not None:
            self._moved(0.0, 0)
