"""Counts over time of one pool: five seconds each for ten minutes, and a minute each for six hours.

Adding to them takes the same time whatever was added before, and they take a bounded place. Arithmetic of sums alone:
it never knows what a decision or an outcome is.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import exp, floor, log
from typing import Any, Final

import numpy as np

from bandit.intervals import wilson
from bandit.types import FloatArray

__all__ = ["COARSE_S", "FINE_S", "Bucket", "Cell", "Forecast", "Series", "share_of"]

FINE_S: Final = 5.0
COARSE_S: Final = 60.0
_FINE: Final = 120
_COARSE: Final = 360
_BINS_PER_E: Final = 1.0 / log(1.04)  # a quantile is within 2 % of a value that was seen
_QUANTILES: Final = (0.5, 0.95, 0.99)
_FIELDS: Final = ("routed", "attempts", "failed", "graded", "quality", "cost_usd")


class Cell:
    """One model's counts. `routed`: decisions for it; `failed`: attempts it is to blame for."""

    __slots__ = _FIELDS

    def __init__(self) -> None:
        self.routed = self.attempts = self.failed = self.graded = 0
        self.quality = self.cost_usd = 0.0

    def add(self, other: Cell) -> None:
        """Add another's counts to these."""
        for name in _FIELDS:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Forecast:
    """By model, what it was predicted to cost and to be worth on the same calls: sums, and of how many calls."""

    __slots__ = ("_arms", "_cost_usd", "_count", "_earlier", "_quality")

    def __init__(self) -> None:
        self._earlier: dict[str, tuple[int, float, float]] = {}  # of other arms than the present ones
        self._arms: tuple[str, ...] = ()
        self._count = 0
        self._cost_usd = self._quality = np.zeros(0)

    def add(self, arms: tuple[str, ...], cost_usd: FloatArray, quality: FloatArray) -> None:
        """One call's predictions, shape (n_arms,); NaN where a price is unknown."""
        if arms != self._arms:
            self._earlier = self.by_model()
            self._arms, self._count = arms, 0
            self._cost_usd, self._quality = np.zeros(len(arms)), np.zeros(len(arms))
        self._count += 1
        self._cost_usd += cost_usd
        self._quality += quality

    def by_model(self) -> dict[str, tuple[int, float, float]]:
        """(calls, cost in USD, quality) by model; the cost is NaN where any call's was unknown."""
        sums = dict(self._earlier)
        for arm, cost_usd, quality in zip(self._arms, self._cost_usd.tolist(), self._quality.tolist(), strict=True):
            calls, usd, worth = sums.get(arm, (0, 0.0, 0.0))
            sums[arm] = (calls + self._count, usd + cost_usd, worth + quality)
        return sums

    def merge(self, sums: Mapping[str, Sequence[float]]) -> None:
        """Add what `by_model` of another says."""
        merged = self.by_model()
        for arm, (calls, cost_usd, quality) in sums.items():
            known = merged.get(arm, (0, 0.0, 0.0))
            merged[arm] = (known[0] + int(calls), known[1] + cost_usd, known[2] + quality)
        self._earlier, self._arms, self._count = merged, (), 0
        self._cost_usd = self._quality = np.zeros(0)


class Bucket:
    """All that was counted from `start` on, in unix seconds."""

    __slots__ = ("cells", "forecast", "latency", "start")

    def __init__(self, start: float) -> None:
        self.start = start
        self.cells: dict[str, Cell] = {}
        self.latency: dict[int, int] = {}
        self.forecast = Forecast()

    def cell(self, model: str) -> Cell:
        """The model's counts."""
        found = self.cells.get(model)
        if found is None:
            found = self.cells[model] = Cell()
        return found

    def took(self, latency_s: float) -> None:
        """Count an answer's latency."""
        index = floor(log(max(latency_s, 1e-6)) * _BINS_PER_E)
        self.latency[index] = self.latency.get(index, 0) + 1

    def add(self, other: Bucket) -> None:
        """Add another's counts to these."""
        for model, cell in other.cells.items():
            self.cell(model).add(cell)
        for index, count in other.latency.items():
            self.latency[index] = self.latency.get(index, 0) + count
        self.forecast.merge(other.forecast.by_model())

    def shown(self) -> dict[str, Any]:
        """As JSON: shares by model, sums over models, quality with its interval, quantiles of answers' latency."""
        cells = self.cells.values()
        return {
            "t": self.start,
            "routed": {model: cell.routed for model, cell in self.cells.items() if cell.routed},
            "attempts": sum(cell.attempts for cell in cells),
            "failed": sum(cell.failed for cell in cells),
            "cost_usd": sum(cell.cost_usd for cell in cells),
            "alone_usd": {m: known(usd) for m, (_, usd, _) in self.forecast.by_model().items()},
            "quality": share_of(sum(cell.quality for cell in cells), sum(cell.graded for cell in cells)),
            "latency_s": quantiles(self.latency),
        }


class Series:
    """The buckets of one pool, oldest first. A time before the newest bucket's start counts in that bucket."""

    def __init__(self) -> None:
        self._now = Bucket(0.0)
        self._fine: deque[Bucket] = deque(maxlen=_FINE - 1)
        self._coarse: deque[Bucket] = deque(maxlen=_COARSE)

    def at(self, ts: float) -> Bucket:
        """The bucket to count in at unix time `ts`."""
        if ts >= self._now.start + FINE_S:
            self._close()
            self._now = Bucket(ts - ts % FINE_S)
        return self._now

    def fine(self) -> list[Bucket]:
        """Those of five seconds, up to the one that is being filled."""
        return [*self._fine, self._now] if self._now.start else []

    def since(self, ts: float) -> Bucket:
        """What those of five seconds hold that began after `ts`, in one; there is one only where something came."""
        found = Bucket(ts)
        for bucket in self.fine():
            if bucket.start > ts:
                found.add(bucket)
        return found

    def coarse(self) -> list[Bucket]:
        """Those of a minute; the last holds what there is of its minute."""
        if not self._now.start:
            return []
        start = self._now.start - self._now.start % COARSE_S
        last = Bucket(start)
        closed = list(self._coarse)
        if closed and closed[-1].start == start:
            last.add(closed.pop())
        last.add(self._now)
        return [*closed, last][-_COARSE:]

    def _close(self) -> None:
        now = self._now
        if not now.start:
            return
        self._fine.append(now)
        start = now.start - now.start % COARSE_S
        if not self._coarse or self._coarse[-1].start != start:
            self._coarse.append(Bucket(start))
        self._coarse[-1].add(now)

    def state(self) -> dict[str, Any]:
        """As arrays and plain data; `load` is its inverse."""
        return {"fine": _packed([*self._fine, self._now]), "coarse": _packed(self._coarse)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state."""
        *fine, now = _unpacked(state["fine"]) or [Bucket(0.0)]
        self._fine, self._now = deque(fine, maxlen=_FINE - 1), now
        self._coarse = deque(_unpacked(state["coarse"]), maxlen=_COARSE)


def share_of(total: float, count: int) -> list[float] | None:
    """[mean, low, high, count] of grades, with Wilson's interval at 95 %; None without any."""
    if not count:
        return None
    total = min(max(total, 0.0), float(count))  # a sum may round upwards
    return [total / count, *wilson(total, count), count]


def quantiles(latency: Mapping[int, int]) -> list[float] | None:
    """[p50, p95, p99] of the latencies counted, each within 2 %; None without any."""
    count = sum(latency.values())
    if not count:
        return None
    found, seen, ordered = [], 0, iter(sorted(latency.items()))
    index = 0
    for quantile in _QUANTILES:
        while seen < quantile * count:
            index, of_bin = next(ordered)
            seen += of_bin
        found.append(exp((index + 0.5) / _BINS_PER_E))
    return found


def known(value: float) -> float | None:
    """JSON has no NaN."""
    return None if value != value else value  # noqa: PLR0124 - NaN alone differs from itself


def _packed(buckets: Iterable[Bucket]) -> dict[str, Any]:
    """Buckets as arrays, which a snapshot writes quickly, and the names that their rows speak of."""
    names: dict[str, int] = {}
    starts: list[float] = []
    cells: list[list[float]] = []
    latency: list[tuple[int, int, int]] = []
    forecasts: list[tuple[float, ...]] = []
    for i, bucket in enumerate(bucket for bucket in buckets if bucket.start):
        starts.append(bucket.start)
        for model, cell in bucket.cells.items():
            row = [i, names.setdefault(model, len(names)), *(getattr(cell, name) for name in _FIELDS)]
            cells.append(row)
        latency += [(i, index, count) for index, count in bucket.latency.items()]
        for model, sums in bucket.forecast.by_model().items():
            forecasts.append((i, names.setdefault(model, len(names)), *sums))
    return {
        "names": list(names),
        "starts": np.array(starts, dtype=np.float64),
        "cells": np.array(cells, dtype=np.float64).reshape(-1, 2 + len(_FIELDS)),
        "latency": np.array(latency, dtype=np.int64).reshape(-1, 3),
        "forecasts": np.array(forecasts, dtype=np.float64).reshape(-1, 5),
    }


def _unpacked(state: Mapping[str, Any]) -> list[Bucket]:
    names, buckets = state["names"], [Bucket(start) for start in state["starts"].tolist()]
    for i, name, *values in _rows(state["cells"]):
        cell = buckets[int(i)].cell(names[int(name)])
        for field, value in zip(_FIELDS, values, strict=True):
            setattr(cell, field, value if field in ("quality", "cost_usd") else int(value))
    for i, index, count in state["latency"].tolist():
        buckets[i].latency[index] = count
    for i, name, *sums in _rows(state["forecasts"]):
        buckets[int(i)].forecast.merge({names[int(name)]: sums})
    return buckets


def _rows(array: np.ndarray) -> Iterator[list[float]]:
    yield from array.tolist()
