"""The learned state of one process: pools, roster and folds, changed by events in the log's order and by nothing else.

The same methods act on an event when it gets its place in the log, when it is replayed, and when another process made
it; so all of these end in one state. Returns what the events call for, such as a reset on drift, and logs nothing.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakValueDictionary

import orjson

from bandit.pool import Change, Pool
from bandit.types import Decision, Feedback, Outcome
from serving.folds import ChangeRow, Fold
from serving.imputation import learn_feedback
from serving.learned_state import state_of, take_over
from serving.records import Record, labels_from, record_from
from serving.roster import ADDED, REMOVED, Roster
from serving.store import Event

__all__ = ["Called", "Learned"]

_TEACHING = ("bandit", "weighted", "sticky", "canary", "shadow")  # the other modes' calls teach nothing


@dataclass(slots=True)
class Called:
    """What an event calls for: changes of standing by pool, which the log must tell, and rows that parts propose.

    A `DriftReset` among the changes has not been acted upon: it is when its own event has its place.
    """

    changes: list[tuple[Pool, list[Change]]] = field(default_factory=list)
    rows: list[ChangeRow] = field(default_factory=list)


class Learned:
    """`find` looks a decision's events up; `witness` is told of events that are no decision's.

    `recent`: so many decisions stay in memory, for what is to come of them. `placed`: the seq up to which the log's
    order is known here; what `find` gives may be ahead of it.
    """

    def __init__(
        self,
        find: Callable[[str], list[Event]],
        witness: Callable[[Event], None] | None,
        *,
        recent: int,
        placed: Callable[[], int],
    ) -> None:
        self.pools: dict[str, Pool] = {}
        self.roster = Roster((), {}, {})
        self.folds: dict[str, Fold] = {}
        self.recent = recent
        self._find, self._witness, self._placed = find, witness or (lambda _: None), placed
        self._recent: OrderedDict[str, Record] = OrderedDict()
        # Records somebody holds, such as a call under way: there must never be two of one decision.
        self._alive: WeakValueDictionary[str, Record] = WeakValueDictionary()

    def adopt(self, pools: Mapping[str, Pool], roster: Roster, folds: Sequence[Fold]) -> None:
        """Go on with these parts; folds of the same subject change."""
        self.pools, self.roster = dict(pools), roster
        self.folds |= {part.subject: part for part in folds}

    def state(self) -> dict[str, Any]:
        """Everything, for `bandit.snapshot`."""
        return state_of(self.pools, self.roster, self.folds.values())

    def load(self, state: Mapping[str, Any]) -> None:
        """Be what a state says, as far as it fits the parts."""
        take_over(state, self.pools, self.roster, self.folds.values())

    # --- decisions in memory

    def remember(self, record: Record) -> None:
        """Keep a decision among the recent ones."""
        recent, decision_id = self._recent, record.decision.decision_id
        self._alive[decision_id] = recent[decision_id] = record
        recent.move_to_end(decision_id)
        if len(recent) > self.recent:
            recent.popitem(last=False)

    def known(self, decision_id: str) -> Record | None:
        """A decision, from memory or else from the store: then it may know of events that have no place here yet."""
        record = self._recent.get(decision_id) or self._alive.get(decision_id)
        if record is not None:
            return record
        record = record_from(events := self._find(decision_id))
        # One that is ahead must not be what events are placed on: elsewhere they find what the log had before them.
        if record is not None and events[-1].seq <= self._placed():
            self.remember(record)
        return record

    def in_order(self, record: Record) -> Record:
        """The decision as the events that have their place left it, of one that `known` gave."""
        decision_id = record.decision.decision_id
        return self._recent.get(decision_id) or self._alive.get(decision_id) or record

    def _before(self, event: Event) -> Record | None:
        """The decision as it was just before `event`."""
        record = self._recent.get(event.decision_id) or self._alive.get(event.decision_id)
        if record is None:
            record = record_from([e for e in self._find(event.decision_id) if e.seq < event.seq])
            if record is not None:
                self.remember(record)
        return record

    # --- events

    def place(self, event: Event) -> Called:
        """Act on an event as the log has it. Raises ValueError, LookupError, TypeError for one that cannot be read."""
        if event.kind == "decision":
            row = orjson.loads(event.payload)
            record = Record(Decision.from_row(row), labels=labels_from(row))
            self.remember(record)
            self.decided(record)
        elif event.kind == "outcome":
            outcome, known = Outcome(**orjson.loads(event.payload)), self._before(event)
            if known is not None:
                return self.attempted(known, outcome)
        elif event.kind == "feedback":
            row = orjson.loads(event.payload)
            row.pop("reward", None)
            feedback, known = Feedback(**row), self._before(event)
            if known is not None:
                return self.graded(known, feedback)
        else:
            return self._of_no_decision(event)
        return Called()

    def decided(self, record: Record) -> None:
        """A decision was made."""
        decision = record.decision
        pool = self._learning(decision)
        if pool is not None and decision.mode != "shadow" and decision.context.version == pool.features.version:
            pool.advance(decision)
        for part in self.folds.values():
            part.decided(record)

    def attempted(self, record: Record, outcome: Outcome) -> Called:
        """An attempt ended."""
        record.outcome, called = outcome, Called()
        pool = self._learning(record.decision)
        if pool is not None:
            booked = record.decision.mode != "shadow"
            called.changes = [(pool, pool.apply_outcome(record.decision, outcome, replay=True, booked=booked))]
        for part in self.folds.values():
            called.rows += part.outcome(record, outcome)
        return called

    def graded(self, record: Record, feedback: Feedback) -> Called:
        """Feedback came."""
        called = Called(rows=[row for part in self.folds.values() for row in part.feedback(record, feedback)])
        pool = self._learning(record.decision)
        if pool is not None and not record.failed:  # else there was no answer to grade; the failure taught its lesson
            called.changes = [(pool, learn_feedback(pool, record, feedback, replay=True))]
        record.feedback = feedback
        return called

    def _of_no_decision(self, event: Event) -> Called:
        row, called = orjson.loads(event.payload), Called()
        if event.kind == "benchmark_result":
            called.changes = self._benchmark(row)
            return called
        self._witness(event)
        if event.kind == "change":
            if (part := self.folds.get(row["subject"])) is not None:
                part.changed(row)
        elif event.kind in (ADDED, REMOVED):
            self.roster.apply(event.kind, row, self.pools)
        elif row["pool"] in self.pools and row["reason"] == "drift":
            pool = self.pools[row["pool"]]
            called.changes = [(pool, pool.apply_reset(row["model"], row["constraint_name"], row["evidence"]))]
        return called

    def _benchmark(self, row: Mapping[str, Any]) -> list[tuple[Pool, list[Change]]]:
        """Teach every pool that has the model; an answer that never came says nothing about accuracy."""
        model, quality, category = row["model"], row.get("quality"), row.get("category")
        if quality is None or row.get("error") is not None:
            return []
        having = [pool for pool in self.pools.values() if model in pool.names]
        return [(pool, pool.apply_benchmark(model, quality, category)) for pool in having]

    def _learning(self, decision: Decision) -> Pool | None:
        return self.pools.get(decision.pool) if decision.mode in _TEACHING else None
