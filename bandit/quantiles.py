"""A quantile of the most recent values, for display and for saying by how much a limit is exceeded."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

import numpy as np

__all__ = ["RecentQuantile"]


class RecentQuantile:
    """The `q`-quantile of the last `window` values, interpolated between the two nearest (Hyndman & Fan, 1996, no. 7).

    Every outcome adds a value and few look at the quantile: it is found when somebody looks.
    """

    __slots__ = ("_found", "_q", "_values")

    def __init__(self, q: float, window: int) -> None:
        self._q = q
        self._values = deque[float](maxlen=window)
        self._found: float | None = None

    @property
    def count(self) -> int:
        """How many values are in the window."""
        return len(self._values)

    def add(self, value: float) -> None:
        """One more value; the oldest beyond the window is dropped."""
        self._values.append(value)
        self._found = None

    def get(self) -> float:
        """The quantile; NaN while there is no value."""
        if self._found is None:
            self._found = float(np.quantile(self._values, self._q)) if self._values else float("nan")
        return self._found

    def values(self) -> list[float]:
        """The window, oldest first; `load` takes it back."""
        return list(self._values)

    def load(self, values: Iterable[float]) -> None:
        """Replace the window."""
        self._values.clear()
        self._values.extend(values)
        self._found = None
