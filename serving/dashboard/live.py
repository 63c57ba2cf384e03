"""What the service has done, counted as it happens: a fold over the log, so that a restart changes no figure.

Totals since the log began, series of late, the last decisions, and a time line of what changed. Adding to them takes
the same short time however much there is. Decides nothing, and knows neither HTTP nor who looks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

from serving.dashboard.series import Forecast, Series, known, share_of
from serving.dashboard.timeline import TimeLine
from serving.imputation import is_imputed
from serving.store import Event

if TYPE_CHECKING:
    from bandit.types import Feedback, Outcome
    from serving.folds import ChangeRow
    from serving.records import Record

__all__ = ["Live", "Total"]

LAST_DECISIONS: Final = 100
_UNITS_PER_USD: Final = 10**12  # whole units: a sum does not depend on its order (as `serving.access.ledger`)
_ROUTED: Final = ("bandit", "weighted", "sticky", "canary")
_NOBODYS: Final = ("pinned", "cached")  # no model of the pool was chosen, or none was asked


@dataclass(slots=True)
class Total:
    """One model's sums in one pool, of calls of every kind; `cost` in millionths of a millionth of a USD."""

    calls: int = 0
    attempts: int = 0
    failed: int = 0
    cost: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    unpriced_calls: int = 0
    graded: int = 0
    quality: float = 0.0

    def took(self, outcome: Outcome) -> None:
        """Count an attempt."""
        self.calls += outcome.attempt == 0
        self.attempts += 1
        self.failed += outcome.status != "ok"
        self.cost += 0 if outcome.cost_usd is None else round(outcome.cost_usd * _UNITS_PER_USD)
        self.input_tokens += outcome.input_tokens or 0
        self.output_tokens += outcome.output_tokens or 0
        self.unpriced_calls += outcome.cost_usd is None and outcome.status == "ok"

    def shown(self) -> dict[str, Any]:
        """As JSON, by the names that usage has."""
        sums = asdict(self)
        del sums["cost"], sums["graded"], sums["quality"]
        return sums | {"cost_usd": self.cost / _UNITS_PER_USD, "quality": share_of(self.quality, self.graded)}


@dataclass(slots=True)
class _PoolSums:
    """What one pool's models would have made of the same calls, and the calls' own sums."""

    series: Series = field(default_factory=Series)
    forecast: Forecast = field(default_factory=Forecast)
    answered: int = 0
    routed_cost: int = 0


class Live:
    """Everything that is counted; `serving.folds.Fold`, and the witness of events that are no decision's."""

    subject: Final = "dashboard"

    def __init__(self, pools: Collection[str]) -> None:
        self.since: float | None = None
        self.totals: dict[tuple[str, str], Total] = {}
        self.timeline = TimeLine()
        self.decisions: deque[Record] = deque(maxlen=LAST_DECISIONS)
        self._pools = {name: _PoolSums() for name in pools}

    def follow(self, pools: Iterable[str]) -> None:
        """Count for these pools from now on; what was counted of one that stays, stays."""
        self._pools = {name: self._pools.get(name) or _PoolSums() for name in pools}

    # --- the fold

    def changed(self, row: ChangeRow) -> None:
        """Nothing is ever changed here."""

    def witness(self, event: Event) -> None:
        """Note an event of no decision: a model's standing, an operator's change, a canary's move."""
        self.timeline.witness(event)

    def decided(self, record: Record) -> None:
        """Count a decision."""
        decision = record.decision
        if self.since is None:
            self.since = decision.ts
        self.decisions.append(record)
        sums = self._pools.get(decision.pool)
        if sums is not None and decision.mode in _ROUTED:
            sums.series.at(decision.ts).cell(decision.chosen).routed += 1

    def outcome(self, record: Record, outcome: Outcome) -> Sequence[ChangeRow]:
        """Count an attempt."""
        decision = record.decision
        self._total(decision.pool, outcome.model).took(outcome)
        sums = self._pools.get(decision.pool)
        if sums is None or decision.mode in _NOBODYS:
            return ()
        bucket = sums.series.at(outcome.ts)
        cell = bucket.cell(outcome.model)
        cell.attempts += 1
        cell.failed += outcome.failed
        cell.cost_usd += outcome.cost_usd or 0.0
        answered = outcome.status == "ok"
        if answered and outcome.latency_s is not None:
            bucket.took(outcome.latency_s)
        if decision.mode in _ROUTED:
            sums.routed_cost += round((outcome.cost_usd or 0.0) * _UNITS_PER_USD)
            if answered:
                sums.answered += 1
                predicted = (decision.arms, decision.predicted_cost_usd, decision.predicted_quality)
                sums.forecast.add(*predicted)
                bucket.forecast.add(*predicted)
        return ()

    def feedback(self, record: Record, feedback: Feedback) -> Sequence[ChangeRow]:
        """Count a grade; a revision replaces what it revises in the totals, and stays as it was in the series."""
        if feedback.quality is None or is_imputed(feedback) or record.failed:
            return ()
        decision, model = record.decision, record.served_by
        total = self._total(decision.pool, model)
        first = feedback.revises is None or is_imputed(record.feedback)
        if not first:
            total.quality += feedback.quality - (feedback.revises or 0.0)
            return ()
        total.graded += 1
        total.quality += feedback.quality
        sums = self._pools.get(decision.pool)
        if sums is not None and decision.mode not in _NOBODYS:
            cell = sums.series.at(feedback.ts).cell(model)
            cell.graded += 1
            cell.quality += feedback.quality
        return ()

    def state(self) -> dict[str, Any]:
        """Everything but the last decisions, which the log has."""
        pools = {
            name: {
                "series": sums.series.state(),
                "forecast": sums.forecast.by_model(),
                "sums": [sums.answered, sums.routed_cost],
            }
            for name, sums in self._pools.items()
        }
        totals = [[*place, *asdict(total).values()] for place, total in self.totals.items()]
        return {"since": self.since, "totals": totals, "pools": pools, "timeline": self.timeline.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state; pools that are no more keep their totals alone."""
        self.since = state["since"]
        self.totals = {(pool, model): Total(*values) for pool, model, *values in state["totals"]}
        self.timeline.load(state["timeline"])
        for name, saved in state["pools"].items():
            if name in self._pools:
                sums = _PoolSums()
                sums.series.load(saved["series"])
                sums.forecast.merge(saved["forecast"])
                sums.answered, sums.routed_cost = saved["sums"]
                self._pools[name] = sums

    # --- to look at

    def series(self, pool: str) -> Series:
        """The pool's counts over time."""
        return self._sums_of(pool).series

    def models(self, pool: str) -> dict[str, dict[str, Any]]:
        """By model: its totals in the pool."""
        return {model: total.shown() for (name, model), total in self.totals.items() if name == pool}

    def everything(self) -> dict[str, Any]:
        """The totals of all pools and of calls that named a model."""
        return _sum(self.totals.values())

    def total(self, pool: str) -> dict[str, Any]:
        """The totals of one pool."""
        return _sum([total for (name, _), total in self.totals.items() if name == pool])

    def alone(self, pool: str) -> dict[str, Any]:
        """What each model alone was predicted to cost, and to be worth, on the calls of the pool that were answered.

        `cost_usd` is scaled to all of these calls where a model was there for some of them; None: no known price.
        """
        sums = self._sums_of(pool)
        return {
            "answered": sums.answered,
            "cost_usd": sums.routed_cost / _UNITS_PER_USD,
            "models": {
                model: {
                    "calls": calls,
                    "cost_usd": known(usd / calls * sums.answered) if calls else None,
                    "quality": known(quality / calls) if calls else None,
                }
                for model, (calls, usd, quality) in sums.forecast.by_model().items()
            },
        }

    def _sums_of(self, pool: str) -> _PoolSums:
        return self._pools.setdefault(pool, _PoolSums())

    def _total(self, pool: str, model: str) -> Total:
        found = self.totals.get((pool, model))
        if found is None:
            found = self.totals[pool, model] = Total()
        return found


def _sum(totals: Collection[Total]) -> dict[str, Any]:
    """Totals added up."""
    added = Total()
    for total in totals:
        for name in Total.__slots__:
            setattr(added, name, getattr(added, name) + getattr(total, name))
    return added.shown()
