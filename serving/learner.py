"""The learned state of all pools, and the only code that changes it: every change is an event, applied as it is logged.

Events are applied in the order in which the store numbers them, so the state after a restart is the fold of the log:
the last snapshot and the events behind it. Knows nothing of HTTP or upstreams.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import orjson

from bandit.errors import InvalidInput, NoFeasibleArm
from bandit.pool import Change, Pool
from bandit.snapshot import dumps, loads
from bandit.steering import UNSTEERED, Steer
from bandit.types import Decision, Feedback, Outcome, Prompt, RequestLimits
from serving.errors import InvalidRequest, LimitsNotMet, NothingFeasible, Unavailable
from serving.folds import ChangeRow, Fold
from serving.imputation import is_imputed, learn_feedback
from serving.learned_state import latest_state, state_of, take_over
from serving.metrics import Metrics
from serving.records import (
    DecisionIds,
    Labels,
    Record,
    change_event,
    decision_event,
    feedback_event,
    filter_event,
    labels_from,
    outcome_event,
    record_from,
    reward_of,
)
from serving.request_headers import NO_LIMITS
from serving.roster import ADDED, REMOVED, Roster
from serving.store import Event, Store, StoreError, StoreUnusable

__all__ = ["Learner"]

_log = logging.getLogger("pointsman.learner")
_REPLAY_BATCH = 5_000
_TEACHING = ("bandit", "weighted", "sticky", "canary", "shadow")  # the other modes' calls teach nothing


class Learner:
    """Decides, records and learns for every pool. All methods belong to the event loop's thread."""

    def __init__(
        self,
        pools: Mapping[str, Pool],
        generators: Mapping[str, np.random.Generator],
        store: Store,
        metrics: Metrics,
        *,
        cache_decisions: int,
        snapshot_every_events: int,
        roster: Roster | None = None,
        folds: Sequence[Fold] = (),
        witness: Callable[[Event], None] | None = None,
    ) -> None:
        self.pools: dict[str, Pool] = {}
        self.ids = DecisionIds()
        self._generators: dict[str, np.random.Generator] = {}
        self._folds: dict[str, Fold] = {}
        self._store, self._metrics = store, metrics
        self._witness = witness or (lambda _: None)  # of events that are no decision's, replayed or new
        # By pool: (ts, seq) of the last outcome whose missing feedback has been dealt with (`serving.imputation`).
        self.awaited: dict[str, tuple[float, int]] = {}
        self._snapshot_at, self._snapshot_ts = 0, 0.0
        self._recent: OrderedDict[str, Record] = OrderedDict()
        # Records somebody holds, such as a call under way: there must never be two of one decision.
        self._alive: WeakValueDictionary[str, Record] = WeakValueDictionary()
        roster = roster or Roster((), {name: pool.names for name, pool in pools.items()}, {})
        self.adopt(pools, generators, roster, folds)
        self.configure(cache_decisions=cache_decisions, snapshot_every_events=snapshot_every_events)

    def configure(self, *, cache_decisions: int, snapshot_every_events: int) -> None:
        """Keep so many decisions in memory, and take snapshots so often, from now on."""
        self._cache_decisions, self._snapshot_every = cache_decisions, snapshot_every_events

    def teach(self, pools: Mapping[str, Pool], roster: Roster, folds: Sequence[Fold]) -> None:
        """Give parts that are as another configuration makes them what was learned, as a restart would."""
        take_over(loads(dumps(self._state())), pools, roster, folds)

    def adopt(
        self,
        pools: Mapping[str, Pool],
        generators: Mapping[str, np.random.Generator],
        roster: Roster,
        folds: Sequence[Fold],
    ) -> None:
        """Go on with these parts from now on; folds of the same subject, and generators of the same pool, change."""
        self.pools, self.roster = dict(pools), roster
        self._generators = {name: generators.get(name) or self._generators[name] for name in pools}
        self._folds |= {part.subject: part for part in folds}
        self._metrics.state.pools = self.pools

    @property
    def healthy(self) -> bool:
        """Whether what is recorded can be kept."""
        return self._store.healthy

    @property
    def snapshot_position(self) -> int:
        """The log position up to which a snapshot holds what was learned; events behind it must be kept."""
        return self._snapshot_at

    @property
    def snapshot_ts(self) -> float:
        """When that snapshot was taken, in unix seconds; 0 while there is none."""
        return self._snapshot_ts

    def decide(
        self, pool: str, prompt: Prompt, ts: float, limits: RequestLimits = NO_LIMITS, steer: Steer = UNSTEERED
    ) -> Decision:
        """A decision of a pool at unix time `ts` within the request's own `limits`, under `steer`; not recorded yet.

        Raises InvalidRequest for a vector that does not fit, NothingFeasible, LimitsNotMet.
        """
        chooser, rng = self.pools[pool], self._generators[pool]
        try:
            return chooser.decide(prompt, rng, decision_id=self.ids.new(ts), ts=ts, limits=limits, steer=steer)
        except InvalidInput as error:
            raise InvalidRequest(f"{error} (x-pointsman-context)", error.field, "invalid_context") from None
        except NoFeasibleArm as error:
            feasible = [name for name, p in zip(chooser.names, chooser.filters.compliance(), strict=True) if p > 0]
            if not feasible:
                raise NothingFeasible(str(error)) from None
            excess = {name: error.excess[name] for name in feasible}
            raise LimitsNotMet(pool, {n: over if over < inf else None for n, over in excess.items()}) from None

    def ranked(self, decision: Decision) -> list[str]:
        """The feasible models of a decision, by expected utility now; in the pool's order where nothing is learned."""
        pool = self.pools.get(decision.pool)
        feasible = [name for name, able in zip(decision.arms, decision.feasible, strict=True) if able]
        if pool is None or decision.context.version != pool.features.version:
            return feasible
        mean = dict(zip(pool.names, pool.utilities(decision.context).mean.tolist(), strict=True))
        return sorted((name for name in feasible if name in mean), key=lambda name: -mean[name])

    def record_decision(self, decision: Decision, labels: Labels) -> tuple[Record, asyncio.Future[None]]:
        """Log a decision and count it; the future resolves once it is durable."""
        durable = self._append(decision_event(decision, labels))
        record = Record(decision, labels=labels)
        self._remember(record)
        self._metrics.calls.decided(decision)
        self._apply_decision(record)
        self._snapshot_if_due()
        return record, durable

    def record_outcome(self, record: Record, outcome: Outcome) -> asyncio.Future[None]:
        """Log an attempt's outcome and learn from it; the future resolves once it is durable."""
        durable = self._append(outcome_event(outcome))
        self._learn_outcome(record, outcome)
        return durable

    def note_outcome(self, record: Record, outcome: Outcome) -> None:
        """As `record_outcome`, where nobody waits: it is durable before whatever comes later."""
        self._check_healthy()
        self._store.append_nowait([outcome_event(outcome)])
        self._learn_outcome(record, outcome)

    def record_feedback(self, record: Record, feedback: Feedback) -> asyncio.Future[None]:
        """Log feedback and learn it; the future resolves once it is durable."""
        pool = self.pools.get(record.decision.pool)
        durable = self._append(feedback_event(feedback, reward_of(pool, record, feedback)))
        proposed = [row for part in self._folds.values() for row in part.feedback(record, feedback)]
        changes, first = self._apply_feedback(record, feedback), feedback.revises is None or is_imputed(record.feedback)
        record.feedback = feedback
        asked = record.decision.mode != "cached"  # else it is an answer of another decision, graded there
        if feedback.quality is not None and first and asked and not is_imputed(feedback):
            self._metrics.graded(record, feedback.quality)
        self._log_changes(pool, changes)
        self.note_change(proposed)
        self._snapshot_if_due()
        return durable

    def change(self, rows: Sequence[ChangeRow]) -> asyncio.Future[None]:
        """Log changes of folded state, all or none, and make them; the future resolves once they are durable."""
        self._check_healthy()
        events = [change_event(row) for row in rows]
        durable = self._store.append(events)
        for event in events:
            self._apply_change(event)
        self._snapshot_if_due()
        return durable

    def note_change(self, rows: Sequence[ChangeRow]) -> None:
        """As `change`, of what a part proposed; nobody waits for it."""
        if rows:
            events = [change_event(row) for row in rows]
            self._store.append_nowait(events)
            for event in events:
                _log.info("changed: %s", event.payload.decode())
                self._apply_change(event)

    def record_benchmark(self, event: Event) -> asyncio.Future[None]:
        """Log a benchmark result (`records.benchmark_event`) and learn it; the future resolves once it is durable."""
        durable = self._append(event)
        for pool, changes in self._learn_benchmark(event):
            self._log_changes(pool, changes)
        self._snapshot_if_due()
        return durable

    def change_models(self, events: Sequence[Event]) -> asyncio.Future[None]:
        """Log that models come or go, all or none, and act on it; the future resolves once it is durable."""
        self._check_healthy()
        durable = self._store.append(events)
        for event in events:
            self._witness(event)
            if event.kind in (ADDED, REMOVED):  # beside them stands who made the change
                self.roster.apply(event.kind, orjson.loads(event.payload), self.pools)
        self._snapshot_if_due()
        return durable

    def find(self, decision_id: str) -> Record | None:
        """What is known of a decision, from memory or the store."""
        record = self._recent.get(decision_id) or self._alive.get(decision_id)
        if record is None and (record := record_from(self._store.find(decision_id))) is not None:
            self._remember(record)
        return record

    def snapshot(self) -> asyncio.Future[None]:
        """Store all learned state as of now."""
        position, ts = self._store.position, time.time()
        payload = dumps({"ts": ts, "awaited": self.awaited} | self._state())
        durable = self._store.save_snapshot(position, payload)
        self._snapshot_at, self._snapshot_ts = position, ts
        return durable

    def recover(self) -> int:
        """Rebuild the learned state from the last snapshot and the events behind it; returns how many those were.

        Raises StoreUnusable for an event that cannot be read: to go on without it would be to learn something else.
        """
        position = self._load_snapshot()
        start = position
        while events := self._store.read(position, _REPLAY_BATCH):
            for event in events:
                try:
                    self._replay(event)
                except (ValueError, LookupError, TypeError) as error:
                    _log.debug("event %d", event.seq, exc_info=error)
                    reason = f"its event {event.seq} ({event.kind}) cannot be read; restore it from a backup"
                    raise StoreUnusable("router.sqlite", reason) from error
            position = events[-1].seq
        return position - start

    def _state(self) -> dict[str, Any]:
        return state_of(self.pools, self.roster, self._folds.values())

    def _load_snapshot(self) -> int:
        found = latest_state(self._store)
        if found is None:
            return 0
        seq, state = found
        take_over(state, self.pools, self.roster, self._folds.values())
        self.awaited = {name: (float(at[0]), int(at[1])) for name, at in state.get("awaited", {}).items()}
        self._snapshot_at, self._snapshot_ts = seq, state.get("ts", 0.0)
        return seq

    def _replay(self, event: Event) -> None:
        if event.kind == "decision":
            row = orjson.loads(event.payload)
            made = Record(Decision.from_row(row), labels=labels_from(row))
            self._remember(made)
            self._apply_decision(made)
        elif event.kind == "outcome":
            outcome = Outcome(**orjson.loads(event.payload))
            if (record := self._recall(event)) is not None:
                record.outcome = outcome
                self._apply_outcome(record, outcome, replay=True)
                for part in self._folds.values():
                    part.outcome(record, outcome)
        elif event.kind == "feedback":
            row = orjson.loads(event.payload)
            row.pop("reward", None)
            feedback = Feedback(**row)
            if (record := self._recall(event)) is not None:
                for part in self._folds.values():
                    part.feedback(record, feedback)
                self._apply_feedback(record, feedback, replay=True)
                record.feedback = feedback
        else:
            self._replay_of_no_decision(event)

    def _replay_of_no_decision(self, event: Event) -> None:
        if event.kind == "benchmark_result":
            self._learn_benchmark(event)
        elif event.kind == "change":
            self._apply_change(event)
        elif event.kind in (ADDED, REMOVED, "filter_event"):
            self._witness(event)
            row = orjson.loads(event.payload)
            if event.kind != "filter_event":
                self.roster.apply(event.kind, row, self.pools)
            elif row["pool"] in self.pools and row["reason"] == "drift":
                self.pools[row["pool"]].apply_reset(row["model"], row["constraint_name"], row["evidence"])

    def _recall(self, event: Event) -> Record | None:
        """The record as it was just before `event`."""
        record = self._recent.get(event.decision_id)
        if record is None:
            record = record_from([e for e in self._store.find(event.decision_id) if e.seq < event.seq])
            if record is not None:
                self._remember(record)
        return record

    def _apply_decision(self, record: Record) -> None:
        decision = record.decision
        pool = self._learning_pool(decision)
        if pool is not None and decision.mode != "shadow" and decision.context.version == pool.features.version:
            pool.advance(decision)
        for part in self._folds.values():
            part.decided(record)

    def _apply_change(self, event: Event) -> None:
        row = orjson.loads(event.payload)  # as a replay will read it
        self._witness(event)
        if (part := self._folds.get(row["subject"])) is not None:
            part.changed(row)

    def _apply_outcome(self, record: Record, outcome: Outcome, *, replay: bool = False) -> list[Change]:
        pool = self._learning_pool(record.decision)
        if pool is None:
            return []
        return pool.apply_outcome(record.decision, outcome, replay=replay, booked=record.decision.mode != "shadow")

    def _apply_feedback(self, record: Record, feedback: Feedback, *, replay: bool = False) -> list[Change]:
        pool = self._learning_pool(record.decision)
        if pool is None or record.failed:  # there was no answer to grade; the failure itself has taught its lesson
            return []
        return learn_feedback(pool, record, feedback, replay=replay)

    def _learn_benchmark(self, event: Event) -> list[tuple[Pool, list[Change]]]:
        """Teach every pool that has the model; an answer that never came says nothing about accuracy."""
        row = orjson.loads(event.payload)
        model, quality, category = row["model"], row.get("quality"), row.get("category")
        if quality is None or row.get("error") is not None:
            return []
        having = [pool for pool in self.pools.values() if model in pool.names]
        return [(pool, pool.apply_benchmark(model, quality, category)) for pool in having]

    def _learn_outcome(self, record: Record, outcome: Outcome) -> None:
        record.outcome = outcome
        self._remember(record)  # feedback often follows at once, sooner than the store could tell of the outcome
        self._metrics.calls.attempt(record.decision.pool, record.decision.mode, outcome)
        self._log_changes(self.pools.get(record.decision.pool), self._apply_outcome(record, outcome))
        for part in self._folds.values():
            self.note_change(part.outcome(record, outcome))
        self._snapshot_if_due()

    def _learning_pool(self, decision: Decision) -> Pool | None:
        return self.pools.get(decision.pool) if decision.mode in _TEACHING else None

    def _log_changes(self, pool: Pool | None, changes: list[Change]) -> None:
        if pool is not None and changes:
            events = [filter_event(pool.name, pool.names, change) for change in changes]
            for event in events:
                _log.info("standing changed: %s", event.payload.decode())
                self._witness(event)
            self._store.append_nowait(events)

    def _append(self, event: Event) -> asyncio.Future[None]:
        self._check_healthy()
        return self._store.append([event])

    def _check_healthy(self) -> None:
        if not self._store.healthy:
            raise Unavailable("the operational store has failed; the service takes no calls until it is restarted")

    def _snapshot_if_due(self) -> None:
        if self._store.position - self._snapshot_at >= self._snapshot_every:
            try:
                self.snapshot().add_done_callback(_log_failure)
            except StoreError as error:  # what was just recorded is sound: no reason to refuse the call
                _log.error("snapshot not taken: %s", error)

    def _remember(self, record: Record) -> None:
        recent, decision_id = self._recent, record.decision.decision_id
        self._alive[decision_id] = recent[decision_id] = record
        recent.move_to_end(decision_id)
        if len(recent) > self._cache_decisions:
            recent.popitem(last=False)


def _log_failure(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception() is not None:
        _log.error("snapshot not stored: %s", future.exception())
