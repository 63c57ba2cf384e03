"""A quantile of the most recent values, for display and for saying by how much a limit is exceeded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

__all__ = ["RecentQuantile"]


class RecentQuantile:
    """The `q`-quantile of the last `window` values (river's rolling quantile, exact within the window)."""

    __slots__ = ("_make", "_quantile", "_values")

    def __init__(self, q: float, window: int) -> None:
        from river.stats import RollingQuantile

        self._make = lambda: RollingQuantile(q, window)
        self._quantile = self._make()
        self._values = deque[float](maxlen=window)

    @property
    def count(self) -> int:
        """How many values are in the window."""
        return len(self._values)

    def add(self, value: float) -> None:
        """One more value; the oldest beyond the window is dropped."""
        self._quantile.update(value)
        self._values.append(value)

    def get(self) -> float:
        """The quantile; NaN while there is no value."""
        value = self._quantile.get()
        return float("nan") if value is None else float(value)

    def values(self) -> list[float]:
        """The window, oldest first; `load` takes it back."""
        return list(self._values)

    def load(self, values: Iterable[float]) -> None:
        """Replace the window."""
        self._quantile = self._make()
        self._values.clear()
        for value in values:
            self.add(value)
