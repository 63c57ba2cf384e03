"""The learned state of all pools, and the only code that changes it: every change is an event, applied as it is logged.

Events are applied in the order in which the store numbers them, so the state after a restart is the fold of the log:
the last snapshot and the events behind it; and so is that of every process that shares a store. Knows nothing of HTTP
or upstreams.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from math import inf
from typing import Any

import numpy as np
import orjson

from bandit.errors import InvalidInput, NoFeasibleArm
from bandit.pool import Change, DriftReset, Pool
from bandit.snapshot import dumps, loads
from bandit.steering import UNSTEERED, Steer
from bandit.types import Decision, Feedback, Outcome, Prompt, RequestLimits
from serving.due import Due, Proposal
from serving.errors import InvalidRequest, LimitsNotMet, NothingFeasible, Unavailable
from serving.folds import ChangeRow, Fold
from serving.imputation import is_imputed
from serving.learned import Called, Learned
from serving.learned_state import latest_state, take_over
from serving.metrics import Metrics
from serving.records import (
    DecisionIds,
    Labels,
    Record,
    change_event,
    decision_event,
    feedback_event,
    filter_event,
    outcome_event,
    reward_of,
)
from serving.request_headers import NO_LIMITS
from serving.roster import Roster
from serving.store import Event, SharedStore, Store, StoreError, StoreUnusable

__all__ = ["Learner"]

_log = logging.getLogger("pointsman.learner")
_REPLAY_BATCH = 5_000


class Learner:
    """Decides, records and learns for every pool. All methods belong to the event loop's thread.

    `leads`: whether this process, of those that share the store, logs what events call for, and takes snapshots.
    `booked` is told of every outcome that was just appended; `heard`, by subject, of change rows of other processes
    that are about what is not learned.
    """

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
        booked: Callable[[Record, Outcome], None] | None = None,
    ) -> None:
        self.ids = DecisionIds()
        self.leads = True
        self.heard: dict[str, Callable[[ChangeRow], None]] = {}
        self._learned = Learned(store.find, witness, recent=cache_decisions, placed=lambda: store.placed_position)
        self._generators: dict[str, np.random.Generator] = {}
        self._store, self._metrics = store, metrics
        self._booked = booked or (lambda _record, _outcome: None)
        # By pool: (ts, seq) of the last outcome whose missing feedback has been dealt with (`serving.imputation`).
        self.awaited: dict[str, tuple[float, int]] = {}
        self._proposed: set[tuple[Any, ...]] = set()
        self._due = Due()
        self._recovered_to = 0
        self._snapshot_at, self._snapshot_ts = 0, 0.0
        roster = roster or Roster((), {name: pool.names for name, pool in pools.items()}, {})
        self.adopt(pools, generators, roster, folds)
        self.configure(cache_decisions=cache_decisions, snapshot_every_events=snapshot_every_events)

    def configure(self, *, cache_decisions: int, snapshot_every_events: int) -> None:
        """Keep so many decisions in memory, and take snapshots so often, from now on."""
        self._learned.recent, self._snapshot_every = cache_decisions, snapshot_every_events

    def teach(self, pools: Mapping[str, Pool], roster: Roster, folds: Sequence[Fold]) -> None:
        """Give parts that are as another configuration makes them what was learned, as a restart would."""
        take_over(loads(dumps(self._learned.state())), pools, roster, folds)

    def adopt(
        self,
        pools: Mapping[str, Pool],
        generators: Mapping[str, np.random.Generator],
        roster: Roster,
        folds: Sequence[Fold],
    ) -> None:
        """Go on with these parts from now on; folds of the same subject, and generators of the same pool, change."""
        self._learned.adopt(pools, roster, folds)
        self._generators = {name: generators.get(name) or self._generators[name] for name in pools}
        self._metrics.state.pools = self.pools

    @property
    def pools(self) -> dict[str, Pool]:
        """What is learned, by the pool's name."""
        return self._learned.pools

    @property
    def roster(self) -> Roster:
        """The models there are."""
        return self._learned.roster

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
        record = Record(decision, labels=labels)

        def placed() -> None:
            self._learned.decided(record)
            self._snapshot_if_due()

        self._check_healthy()
        durable = self._store.append([decision_event(decision, labels)], placed)
        self._learned.remember(record)
        self._metrics.calls.decided(decision)
        return record, durable

    def record_outcome(self, record: Record, outcome: Outcome) -> asyncio.Future[None]:
        """Log the one outcome of a call that its caller makes, and learn from it; resolves once it is durable.

        Of a shared store it may fail with Superseded: another process has recorded one.
        """
        self._check_healthy()
        durable = self._store.append([outcome_event(outcome, nth=0)], lambda: self._attempted(record, outcome))
        self._booked(record, outcome)
        return durable

    def note_outcome(self, record: Record, outcome: Outcome) -> None:
        """Log an attempt's outcome and learn from it; nobody waits: it is durable before whatever comes later."""
        self._check_healthy()
        self._store.append_nowait([outcome_event(outcome)], lambda: self._attempted(record, outcome))
        record.ended = outcome
        self._booked(record, outcome)

    def record_feedback(self, record: Record, feedback: Feedback) -> asyncio.Future[None]:
        """Log feedback and learn it; the future resolves once it is durable.

        Of a shared store it may fail with Superseded: another process has recorded other feedback.
        """

        def placed() -> None:
            then = self._learned.in_order(record)
            first = feedback.revises is None or is_imputed(then.feedback)
            called = self._learned.graded(then, feedback)
            asked = then.decision.mode != "cached"  # else it is an answer of another decision, graded there
            if feedback.quality is not None and first and asked and not is_imputed(feedback):
                self._metrics.graded(then, feedback.quality)
            self._follow_up(called)

        self._check_healthy()
        pool = self.pools.get(record.decision.pool)
        return self._store.append([feedback_event(feedback, reward_of(pool, record, feedback))], placed)

    def change(self, rows: Sequence[ChangeRow]) -> asyncio.Future[None]:
        """Log changes of folded state, all or none, and make them; the future resolves once they are durable."""
        return self.record([change_event(row) for row in rows])

    def note_change(self, rows: Sequence[ChangeRow]) -> None:
        """As `change`, of what a part proposed; nobody waits for it."""
        self._propose([(None, change_event(row)) for row in rows])

    def record(self, events: Sequence[Event]) -> asyncio.Future[None]:
        """Log events of no decision, all or none, and act on them; the future resolves once they are durable.

        Such as a benchmark result, or models that come or go. Of a shared store it may fail with Superseded.
        """
        self._check_healthy()
        return self._store.append(events, functools.partial(self._place, events))

    def find(self, decision_id: str) -> Record | None:
        """What is known of a decision, from memory or the store."""
        return self._learned.known(decision_id)

    def snapshot(self) -> asyncio.Future[None]:
        """Store all learned state as of now."""
        position, ts = self._store.placed_position, time.time()
        payload = dumps({"ts": ts, "awaited": self.awaited} | self._learned.state())
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
                self._due.add(_proposals(self._read(event)), event.ts)
            position = events[-1].seq
        self._recovered_to = position
        return position - start

    def lead(self, leads: bool) -> None:  # noqa: FBT001 - what is said, not how
        """Log from now on what events call for, also what they did while that could not be logged; or no more."""
        self.leads = leads
        if leads:
            self._propose(self._due.taken(time.time()))

    async def follow(self, store: SharedStore) -> None:
        """Act on all that is logged from where `recover` ended, by whichever process; until cancelled.

        Raises StoreFailed, also for an event that cannot be read.
        """
        await store.follow(self._recovered_to, self._of_another)

    def _load_snapshot(self) -> int:
        found = latest_state(self._store)
        if found is None:
            return 0
        seq, state = found
        self._learned.load(state)
        self.awaited = {name: (float(at[0]), int(at[1])) for name, at in state.get("awaited", {}).items()}
        self._snapshot_at, self._snapshot_ts = seq, state.get("ts", 0.0)
        return seq

    def _read(self, event: Event) -> Called:
        self._due.logged(event)
        try:
            return self._learned.place(event)
        except (ValueError, LookupError, TypeError) as error:
            _log.debug("event %d", event.seq, exc_info=error)
            reason = f"its event {event.seq} ({event.kind}) cannot be read; restore it from a backup"
            raise StoreUnusable(self._store.name, reason) from error

    def _of_another(self, event: Event) -> None:
        self._follow_up(self._read(event))
        if event.kind in ("decision", "outcome"):
            record = self._learned.known(event.decision_id)
            if record is not None:
                record.in_flight = event.kind == "decision" and not record.labels.outside
        elif event.kind == "change" and self.heard:
            row = orjson.loads(event.payload)
            if (hear := self.heard.get(row["subject"])) is not None:
                hear(row)

    def _attempted(self, record: Record, outcome: Outcome) -> None:
        record = self._learned.in_order(record)
        self._metrics.calls.attempt(record.decision.pool, record.decision.mode, outcome)
        self._learned.remember(record)  # feedback often follows sooner than the store could tell of the outcome
        self._follow_up(self._learned.attempted(record, outcome))

    def _place(self, events: Sequence[Event]) -> None:
        every = Called()
        for event in events:
            called = self._learned.place(event)
            every.changes += called.changes
            every.rows += called.rows
        self._follow_up(every)  # not sooner: a snapshot is of all of them, or of none

    def _follow_up(self, called: Called) -> None:
        """Log what an event calls for, if that is this process's to do."""
        proposals = _proposals(called)
        if not self.leads:
            self._due.add(proposals, time.time())
            return
        self._propose(proposals)
        self._snapshot_if_due()

    def _propose(self, events: Sequence[Proposal]) -> None:
        """Log events that an event calls for, but none again that has been logged and waits for its place."""
        fresh = [(key, event) for key, event in events if key is None or key not in self._proposed]
        if not fresh:
            return
        keys, made = {key for key, _ in fresh if key is not None}, [event for _, event in fresh]

        def placed() -> None:
            self._proposed -= keys
            self._place(made)

        for event in made:
            told = "standing changed" if event.kind == "filter_event" else "changed"
            _log.info("%s: %s", told, event.payload.decode())
        self._proposed |= keys
        try:
            self._store.append_nowait(made, placed)
        except StoreError as error:  # what called for it is sound, and has its place
            self._proposed -= keys
            self._due.add(fresh, time.time())
            _log.error("not logged: %s", error)

    def _check_healthy(self) -> None:
        if not self._store.healthy:
            raise Unavailable("the operational store has failed; the service takes no calls until it is restarted")

    def _snapshot_if_due(self) -> None:
        if self.leads and self._store.placed_position - self._snapshot_at >= self._snapshot_every:
            try:
                self.snapshot().add_done_callback(_log_failure)
            except StoreError as error:  # what was just recorded is sound: no reason to refuse the call
                _log.error("snapshot not taken: %s", error)


def _proposals(called: Called) -> list[Proposal]:
    standing = [_of_standing(pool, change) for pool, changes in called.changes for change in changes]
    return standing + [_of_part(row) for row in called.rows]


def _of_standing(pool: Pool, change: Change) -> Proposal:
    event = filter_event(pool.name, pool.names, change)
    return (pool.name, change.arm, change.head) if isinstance(change, DriftReset) else None, event


def _of_part(row: ChangeRow) -> Proposal:
    return None if row["pool"] is None else (row["subject"], row["what"], row["pool"]), change_event(row)


def _log_failure(future: asyncio.Future[None]) -> None:
    if not future.cancelled() and future.exception() is not None:
        _log.error("snapshot not stored: %s", future.exception())
