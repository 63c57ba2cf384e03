"""Notices that an arm no longer behaves as its head predicts.

Owns one change detector per head and arm, fed with the gap between what a decision predicted and what came. Says
*that* and *which way* something changed; what is done about it (resets, evidence that restarts) is the pool's matter.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

from bandit.types import FloatArray

__all__ = ["DriftDetectors"]

_REMEMBERED = 256  # residuals kept to re-feed a detector after a restart


class DriftDetectors:
    """ADWIN (Bifet & Gavaldà, 2007; river's implementation) on prediction residuals, one per head and arm.

    Residuals are clipped to [-span, span] and mapped to [0, 1], the range its bound is stated for. `delta` bounds the
    false-alarm probability of one comparison, not of a whole life; at 1e-4 stationary residuals raise fewer than one
    false alarm in 100,000 (tests/statistical/test_drift.py).
    """

    def __init__(self, n_heads: int, n_arms: int, spans: tuple[float, ...], *, delta: float = 1e-4) -> None:
        adwin = _river_adwin()
        self._make = lambda: adwin(delta=delta, clock=4, grace_period=16)
        self._spans = spans
        self._detectors = [[self._make() for _ in range(n_arms)] for _ in range(n_heads)]
        self._recent = [[deque[float](maxlen=_REMEMBERED) for _ in range(n_arms)] for _ in range(n_heads)]

    def update(self, head: int, arm: int, residual: float) -> float:
        """Add realised minus predicted; returns by how much its mean changed (signed, own unit), 0.0 for not."""
        span = self._spans[head]
        value = min(1.0, max(0.0, 0.5 + 0.5 * residual / span))
        detector = self._detectors[head][arm]
        width, mean = detector.width + 1, detector.estimation
        total = mean * detector.width + value
        detector.update(value)
        recent = self._recent[head][arm]
        recent.append(value)
        if not detector.drift_detected:
            return 0.0
        shift = _largest_shift(np.array(recent), total, width)
        self._detectors[head][arm] = self._make()
        recent.clear()
        return 2.0 * span * shift

    def state(self) -> list[list[list[float]]]:
        """The last residuals of each detector, scaled to [0, 1]."""
        return [[list(values) for values in row] for row in self._recent]

    def load(self, state: Any) -> None:
        """Feed detectors anew with remembered residuals; their windows are at most 256 long after this."""
        for head, row in enumerate(state):
            for arm, values in enumerate(row):
                detector = self._make()
                for value in values:
                    detector.update(value)
                self._detectors[head][arm] = detector
                self._recent[head][arm] = deque(values, maxlen=_REMEMBERED)


def _largest_shift(recent: FloatArray, total: float, width: float) -> float:
    """Mean after minus mean before, where a window of `width` values ending in `recent` is best split in two.

    "Best" leaves the least variance. River's detector drops one bucket at a time when it sees a change, so what its own
    mean moves by is a small part of the change.
    """
    n_after = np.arange(recent.size, 0, -1)
    after = recent[::-1].cumsum()[::-1]
    n_before = np.maximum(width - n_after, 1e-9)
    gap = after / n_after - (total - after) / n_before
    gap[width - n_after < 1.0] = 0.0
    return float(gap[np.argmax(gap * gap * n_after * n_before)])


@cache
def _river_adwin() -> Any:
    """River's class, loaded from its own module alone.

    The package around it imports every detector there is, one of them all of scipy.stats: 0.7 s and 52 MB more.
    """
    import river

    where = Path(river.__path__[0]) / "drift" / "adwin.py"
    spec = spec_from_file_location("river.drift.adwin", where)
    if spec is None or spec.loader is None or not where.exists():  # river has moved it: pay the price
        from river.drift import ADWIN

        return ADWIN
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ADWIN
