"""How many calls may run at once, from how late the event loop is: additive increase, multiplicative decrease.

Pure arithmetic. It is told how long turns of the loop took and how many calls there were, never how long an upstream
took: a slow upstream needs many calls at once and costs this service nothing, so it must not lower the limit.
"""

from __future__ import annotations

import math

__all__ = ["AdaptiveLimit"]

_WINDOW = 10  # turns of the loop judged together; their median, so that one pause is no overload
_GROWTH = 0.1  # a window at most, while the loop is idle; near the target the limit grows by one
_SHRINK = 0.7  # a window at least


class AdaptiveLimit:
    """A limit between `floor` and `ceiling`, lowered while a turn of the loop takes longer than `target_s`.

    It starts at the ceiling. A first congested window takes it to what ran then (Little's law: that is what the service
    can do, at the upstreams' present latency), and a little below.
    """

    def __init__(self, floor: int, ceiling: int, target_s: float) -> None:
        self._floor, self._ceiling, self._target_s = float(floor), float(ceiling), target_s
        self._limit = self._ceiling
        self._turns_s: list[float] = []
        self._peak = 0

    @property
    def limit(self) -> int:
        """Calls that may run at once now."""
        return int(self._limit)

    def turn(self, took_s: float, in_use: int, peak: int) -> bool:
        """Note one turn of the loop: how long it took, how many calls run, how many did at most since the last one.

        True where the limit was judged anew.
        """
        self._turns_s.append(took_s)
        self._peak = max(self._peak, peak)
        if len(self._turns_s) < _WINDOW:
            return False
        median_s = sorted(self._turns_s)[_WINDOW // 2]
        self._judge(median_s, in_use)
        self._turns_s.clear()
        self._peak = 0
        return True

    def _judge(self, turn_s: float, in_use: int) -> None:
        load = turn_s / self._target_s
        if load > 1.0:
            # While more run than the limit allows, the last decrease has not had its effect: another one on top of it
            # would take calls with a slow upstream to the floor.
            if in_use <= self.limit:
                lowered = min(self._limit, float(self._peak)) * max(_SHRINK, 1.0 / math.sqrt(load))
                self._limit = max(self._floor, lowered)
        elif self._peak >= self.limit:  # only a limit that held somebody up can have been too low
            grown = self._limit + max(1.0, self._limit * _GROWTH * (1.0 - load) ** 2)
            self._limit = min(self._ceiling, grown)
