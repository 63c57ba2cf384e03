"""When calls of a stated rate are due, and how late callers sent them; knows no clock, no HTTP and no locust.

Arrivals are Poisson, drawn as they are asked for. A call is late when every caller was busy at its due time: what is
offered is then not what was asked for, and whoever reads the latencies must know.
"""

from __future__ import annotations

import random

import numpy as np

__all__ = ["Pace"]

_MAX_KEPT = 1_000_000
_LATE_S = 0.05  # less is a timer's and a scheduler's
_TOLERATED = 0.05  # of calls sent late, or of calls due and never sent


class Pace:
    """Due times at `rate` calls a second from `begin` on, on the clock of whoever passes times in."""

    def __init__(self, rate: float, begin: float, rng: random.Random) -> None:
        if rate <= 0:
            raise ValueError(f"{rate} calls a second: it must be above 0")
        self._rate, self._begin, self._rng = rate, begin, rng
        self._last = begin
        self._waiting: set[float] = set()
        self._sent = 0
        self._late_s: list[float] = []

    def due(self) -> float:
        """When the next call is due; each due time is handed out once."""
        self._last += self._rng.expovariate(self._rate)
        self._waiting.add(self._last)
        return self._last

    def sent(self, due: float, now: float) -> None:
        """The call that was due then is sent now."""
        self._waiting.discard(due)
        self._sent += 1
        if len(self._late_s) < _MAX_KEPT:
            self._late_s.append(max(0.0, now - due))

    def report(self, now: float) -> list[str]:
        """What was asked for and what was achieved, at the end; a last line warns where they differ."""
        while self._last <= now:
            self.due()
        due = self._sent + sum(each <= now for each in self._waiting)
        took_s = max(now - self._begin, 1e-9)
        asked, achieved = f"{self._rate:.1f} calls/s", f"{self._sent / took_s:.1f} calls/s"
        lines = [f"asked {asked}, achieved {achieved}: of {due} calls due in {took_s:.1f} s {self._sent} were sent"]
        if not self._late_s:
            return lines
        p50, p95, longest = np.quantile(self._late_s, (0.5, 0.95, 1.0)) * 1e3
        late = sum(each > _LATE_S for each in self._late_s) / len(self._late_s)
        lines.append(f"sent late by {p50:.0f} ms at p50, {p95:.0f} at p95, {longest:.0f} at most")
        if late > _TOLERATED or self._sent < (1 - _TOLERATED) * due:
            lines.append(
                f"CALLERS WERE LATE: {late:.0%} of calls by more than {_LATE_S * 1e3:.0f} ms. The load was not the one"
                " asked for: give it more users, or ask for less"
            )
        return lines
