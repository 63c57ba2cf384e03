"""What a run of `evaluate` may still spend, with calls under way at their worst.

Pure bookkeeping. Never waits, and knows nothing of HTTP.
"""

from __future__ import annotations

from collections import Counter

__all__ = ["Budget"]

_ROUNDING_USD = 1e-12


class Budget:
    """Admits a call where all that is known to be spent, plus the worst seen for each call under way, stays within.

    A model's calls count as the dearest it has had; before it had any, as the dearest of all, and then one at a time.
    The very first call of all runs alone. A call that is dearer than any before it can therefore still exceed the
    limit, by what it is dearer. `limit_usd` None: admits everything.
    """

    def __init__(self, limit_usd: float | None) -> None:
        self.limit_usd = limit_usd
        self.spent_usd = 0.0
        self._worst_usd: dict[str, float] = {}
        self._under_way: Counter[str] = Counter()

    def admits(self, model: str) -> bool:
        """Whether a call of `model` may start now."""
        if self.limit_usd is None:
            return True
        if model not in self._worst_usd and (
            self._under_way[model] or (self._under_way.total() and not self._worst_usd)
        ):
            return False
        reserved = sum(count * self._worst(name) for name, count in self._under_way.items())
        return self.spent_usd + reserved + self._worst(model) <= self.limit_usd + _ROUNDING_USD

    def start(self, model: str) -> None:
        """A call of `model` is under way."""
        self._under_way[model] += 1

    def end(self, model: str, cost_usd: float | None) -> None:
        """It is not any more; None: it came to nothing, or nobody knows its cost."""
        self._under_way[model] -= 1
        self.add(model, cost_usd)

    def add(self, model: str, cost_usd: float | None) -> None:
        """A call of an earlier part of the run, or the cost of one that ended."""
        if cost_usd is not None:
            self.spent_usd += cost_usd
            self._worst_usd[model] = max(cost_usd, self._worst_usd.get(model, 0.0))

    def _worst(self, model: str) -> float:
        return self._worst_usd.get(model, max(self._worst_usd.values(), default=0.0))
