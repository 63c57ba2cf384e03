"""What a demo adds up: calls by model, what they would have yielded on one model alone, and what changed when.

Pure accounting over answers as callers saw them and lines of the service's log. Knows neither HTTP nor the screen.
Times are seconds since the traffic began.
"""

from __future__ import annotations

import json
import math
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from evaluation.demo_pool import DemoPool
from evaluation.traffic import Answered, Failure

__all__ = ["Comparison", "Episode", "Event", "ModelRow", "Tally", "event_from_log"]

SLOW_RATE: Final = 0.05
_MARK: Final = "standing changed: "
_BAD_WORDS: Final = {"p95_latency_s": "slow", "p95_time_to_first_token_s": "slow", "min_accuracy": "wrong"}


@dataclass(frozen=True, slots=True)
class Event:
    """Something that changed at `at_s`; `to_state` where a model's state did."""

    at_s: float
    model: str
    text: str
    to_state: str = ""


@dataclass(frozen=True, slots=True)
class ModelRow:
    """One model over one stretch of time; None where there is nothing to tell."""

    name: str
    calls: int
    share: float
    quality: float | None
    cost_per_1000_usd: float | None
    p95_s: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same calls as routed, and as expected on `single`: the most accurate model that keeps the limits alone.

    `keeps`: whether it does; if no model does, it is the most accurate of all. Costs are None where unknown.
    """

    single: str
    keeps: bool
    calls: int
    quality: float
    single_quality: float
    cost_usd: float | None
    single_cost_usd: float | None

    @property
    def saving(self) -> float | None:
        """Share of the single model's cost that was saved; below 0 where routing cost more."""
        if self.cost_usd is None or not self.single_cost_usd:
            return None
        return 1.0 - self.cost_usd / self.single_cost_usd


@dataclass(slots=True)
class Episode:
    """One model's latency, multiplied by `factor` from `start_s` to `end_s` (None: not yet over)."""

    model: str
    factor: float
    start_s: float
    end_s: float | None = None


@dataclass(slots=True)
class Tally:
    """Adds up answers. `started_at_s`: when the traffic began, in `time.monotonic` seconds.

    `factors` and `run` say what holds at present in the pool: `add` needs them for what other models would have done.
    """

    pool: DemoPool
    started_at_s: float
    run: str | None = None
    factors: dict[str, float] = field(default_factory=dict)
    failures: int = 0
    last_failure: str = ""
    _names: tuple[str, ...] = ()
    _done_s: array[float] = field(default_factory=lambda: array("d"))
    _sent_s: array[float] = field(default_factory=lambda: array("d"))
    _model: array[int] = field(default_factory=lambda: array("i"))
    _quality: array[float] = field(default_factory=lambda: array("d"))
    _cost: array[float] = field(default_factory=lambda: array("d"))
    _alone: array[float] = field(default_factory=lambda: array("d"))  # quality, cost, slow of each model in turn

    def __post_init__(self) -> None:
        self._names = self.pool.source.models

    @property
    def calls(self) -> int:
        """Answered calls."""
        return len(self._done_s)

    def add(self, what: Answered | Failure) -> None:
        """Count one answer or failure."""
        if isinstance(what, Failure):
            self.failures += 1
            self.last_failure = what.what
            return
        self._done_s.append(what.done_at_s - self.started_at_s)
        self._sent_s.append(what.sent_at_s - self.started_at_s)
        self._model.append(self._names.index(what.model))
        self._quality.append(what.quality)
        self._cost.append(math.nan if what.cost_usd is None else what.cost_usd)
        for name in self._names:
            e = self.pool.expected(name, what.text, what.category, self.factors.get(name, 1.0), self.run)
            self._alone.extend((e.quality, math.nan if e.cost_usd is None else e.cost_usd, e.slow))

    def rows(self, since_s: float = -math.inf, until_s: float = math.inf) -> list[ModelRow]:
        """Each model over the calls answered in [since_s, until_s), in the pool's order."""
        window = self._window(since_s, until_s)
        model, quality, cost = np.array(self._model[window]), self._quality[window], self._cost[window]
        latency = np.array(self._done_s[window]) - np.array(self._sent_s[window])
        rows = []
        for index, name in enumerate(self._names):
            own = np.flatnonzero(model == index)
            n = own.size
            mean_usd = float(np.mean(np.array(cost)[own])) if n else math.nan
            rows.append(
                ModelRow(
                    name=name,
                    calls=n,
                    share=n / max(1, model.size),
                    quality=float(np.mean(np.array(quality)[own])) if n else None,
                    cost_per_1000_usd=None if math.isnan(mean_usd) else 1000 * mean_usd,
                    p95_s=float(np.quantile(latency[own], 0.95)) if n else None,
                )
            )
        return rows

    def p95_s(self, since_s: float = -math.inf) -> float | None:
        """The 95th percentile of all latencies, as callers saw them."""
        window = self._window(since_s, math.inf)
        latency = np.array(self._done_s[window]) - np.array(self._sent_s[window])
        return float(np.quantile(latency, 0.95)) if latency.size else None

    def cost_usd(self) -> float | None:
        """What all calls cost; None where a price is unknown."""
        total = sum(self._cost)
        return None if math.isnan(total) else total

    def compared(self, since_s: float = -math.inf, until_s: float = math.inf) -> Comparison | None:
        """The calls answered in a window against the best single model *of the whole run*; None without calls."""
        window = self._window(since_s, until_s)
        n = window.stop - window.start
        if n <= 0:
            return None
        alone = np.array(self._alone).reshape(-1, len(self._names), 3)
        mean_quality, _, slow = alone.mean(axis=0).T
        keeps = mean_quality >= self.pool.min_accuracy
        if self.pool.p95_latency_s is not None:
            keeps &= slow <= SLOW_RATE
        best = int(np.argmax(np.where(keeps, mean_quality, -1.0) if keeps.any() else mean_quality))
        costs = float(np.sum(self._cost[window])), float(alone[window, best, 1].sum())
        cost_usd, single_cost_usd = (None if math.isnan(cost) else cost for cost in costs)
        return Comparison(
            single=self._names[best],
            keeps=bool(keeps.any()),
            calls=n,
            quality=float(np.mean(self._quality[window])),
            single_quality=float(alone[window, best, 0].mean()),
            cost_usd=cost_usd,
            single_cost_usd=single_cost_usd,
        )

    def sent_to(self, model: str, since_s: float, until_s: float) -> int:
        """How many calls that a model answered were sent in [since_s, until_s)."""
        sent, own = np.array(self._sent_s), np.array(self._model) == self._names.index(model)
        return int(np.count_nonzero(own & (sent >= since_s) & (sent < until_s)))

    def back_from(self, model: str, since_s: float, until_s: float) -> int:
        """How many of its calls sent since `since_s` had been answered by `until_s`."""
        sent, done = np.array(self._sent_s), np.array(self._done_s)
        own = np.array(self._model) == self._names.index(model)
        return int(np.count_nonzero(own & (sent >= since_s) & (done < until_s)))

    def _window(self, since_s: float, until_s: float) -> slice:
        return slice(bisect_left(self._done_s, since_s), bisect_left(self._done_s, until_s))


def event_from_log(line: str, started_ts: float) -> Event | None:
    """The change of a model's standing that a line of the service's log tells of; None for any other line.

    `started_ts` is when the traffic began, in unix seconds.
    """
    _, mark, payload = line.partition(_MARK)
    if not mark:
        return None
    try:
        row, _ = json.JSONDecoder().raw_decode(payload)  # after it stands whose request brought it about
        at_s, model = float(row["ts"]) - started_ts, str(row["model"])
        if "to_state" not in row:
            return Event(at_s, model, _drift_text(row))
        return Event(at_s, model, _transition_text(row), str(row["to_state"]))
    except (ValueError, KeyError, TypeError):
        return None  # a line of the service that this demo cannot read is no reason to end it


def _transition_text(row: Mapping[str, Any]) -> str:
    bad, seen = _BAD_WORDS.get(row["constraint_name"], "bad"), ""
    # What let a filtered model go on probation is its last probes, and not the rate since it was filtered.
    if row.get("calls") and row.get("rate") is not None and row["to_state"] != "probing":
        seen = f": {row['rate']:.1%} of {row['calls']} {bad}"
    return f"{row['from_state']} → {row['to_state']}, {row['reason']}{seen}"


def _drift_text(row: Mapping[str, Any]) -> str:
    head, change = str(row["constraint_name"]), float(row["evidence"])
    size = f"× {math.exp(min(change, 50.0)):.2g}" if head != "quality" else f"{change:+.2f}"
    return f"drift in {head.replace('_', ' ')}: {size} against predictions"
