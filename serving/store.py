"""The operational store's contract: one ordered, durable log of events, plus snapshots of what was learned from it.

Everything learned is a fold over the events in `seq` order. This file knows neither what a payload says nor how
it is kept: `serving.sqlite_store` implements the contract, and `tests/contract` checks every implementation.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

__all__ = [
    "Event",
    "Kind",
    "SharedStore",
    "Store",
    "StoreClosed",
    "StoreError",
    "StoreFailed",
    "StoreFull",
    "StoreUnusable",
    "Superseded",
    "Tally",
]

Kind = Literal[
    "decision", "outcome", "feedback", "filter_event", "benchmark_result", "model_added", "model_removed", "change"
]


@dataclass(frozen=True, slots=True)
class Event:
    """One entry of the log.

    `payload` is a JSON object, made once by its author and never parsed by a store; `decision_id` is "" where
    there is none; `ts` is in unix seconds; `seq` is 0 until the store assigned one. `nth`: how many events of its kind
    its decision must have when this one is taken; None: any number.
    """

    kind: Kind
    decision_id: str
    ts: float
    payload: bytes
    seq: int = 0
    nth: int | None = field(default=None, compare=False)


class Store(Protocol):
    """An ordered log. All methods belong to the event loop's thread, except `read` and `without_feedback`."""

    def append(self, events: Sequence[Event], placed: Callable[[], None] | None = None) -> asyncio.Future[None]:
        """Assign the next seqs, in call order and without gaps; the future resolves once they are durable.

        `placed` is called when the events have their place in the order, before anything behind them is: at once,
        unless the store is shared. Raises StoreFull (nothing is taken: all events of a call are, or none), StoreFailed,
        StoreClosed. If the write fails, the future and those of all later events fail with StoreFailed: the log never
        has a gap.
        """

    def append_nowait(self, events: Sequence[Event], placed: Callable[[], None] | None = None) -> None:
        """As `append`, for events nobody waits for: they may linger a little, to share a later event's commit.

        An `append` that follows is durable only together with them, so waiting for it waits for these too.
        """

    @property
    def position(self) -> int:
        """The last seq assigned; 0 for an empty log. Never falls, not even when everything was pruned.

        Of a shared store: what this process knows of, and what it has appended.
        """

    @property
    def placed_position(self) -> int:
        """The seq up to which every event has its place: inside `placed` that of its own, the last of its call."""

    @property
    def pending(self) -> int:
        """How many events have a seq but are not durable yet."""

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def healthy(self) -> bool:
        """False once a write failed or the store was closed. A store that failed has to be opened anew."""

    def find(self, decision_id: str) -> list[Event]:
        """The committed events of one decision in seq order; fast enough to be called on the event loop."""

    def read(self, after_seq: int, limit: int) -> list[Event]:
        """Up to `limit` committed events with seq > `after_seq`, in seq order. Blocks; any thread may call it."""

    def without_feedback(
        self, after: tuple[float, int], up_to_ts: float, limit: int
    ) -> tuple[list[str], tuple[float, int]]:
        """Decisions with an outcome and without feedback, by the time of the outcome.

        Looks at the next `limit` committed events of kind outcome behind `after`, a (ts, seq), in that order, none
        younger than `up_to_ts`. Returns those of their decisions that no committed feedback speaks of, and the
        (ts, seq) of the last outcome looked at: where to go on, `after` itself once there is none. Takes time for what
        it looks at, whatever the log's length. Blocks; any thread may call it.
        """

    def save_snapshot(self, seq: int, payload: bytes) -> asyncio.Future[None]:
        """Keep `payload` as the state after event `seq`, durable no sooner than that; the last 2 are kept."""

    def latest_snapshot(self) -> tuple[int, bytes] | None:
        """(seq, payload) of the newest committed snapshot."""

    async def prune(self, before_ts: float, up_to_seq: int, limit: int) -> int:
        """Of the `limit` oldest events, delete those older than `before_ts` with seq ≤ `up_to_seq`; say how many.

        One bounded transaction: call it again while it returns `limit`.
        """

    async def flush(self) -> None:
        """Return once everything appended so far is durable."""

    async def close(self) -> None:
        """Flush and release the file. Later appends raise StoreClosed; a second close does nothing."""


Tally = tuple[str, str, int, float]
"""(counter, part, by how much, until when): a whole number that is kept beside the log, in parts that sum up to it,
and gone at that unix time."""


class SharedStore(Store, Protocol):
    """A store that other processes append to as well: an event's place is known once it is read back.

    An event with `nth` is taken only where that is so when it is committed; else nothing of its `append` is, and the
    future fails with Superseded.
    """

    @property
    def writer(self) -> str:
        """What this process is called among those that append; another name at every start."""

    async def follow(self, after_seq: int, foreign: Callable[[Event], None]) -> None:
        """Hand over the committed events behind `after_seq` in seq order, until cancelled or closed.

        Of one's own, `placed` is called; others' go to `foreign`. While it runs, futures of `append` resolve no sooner
        than that. Raises StoreFailed, also where one of the two raises, and then so do all who wait.
        """

    def count(self, tallies: Sequence[Tally], *, with_append: bool = False) -> None:
        """Add to counters, in one transaction with all that was appended in the same turn of the event loop.

        `with_append`: only if the events of the `append` before it are taken. Never raises StoreFull.
        """


class StoreError(Exception):
    """Base of what a store raises on purpose.

    StoreError
    ├── Superseded      another process was first: the events were not taken
    ├── StoreFull       more events are waiting to be written than the limit allows
    ├── StoreClosed     the store was closed
    ├── StoreFailed     a read or write failed; after a failed write no more are tried
    └── StoreUnusable   the file cannot be opened as a store
    """


class Superseded(StoreError):
    """Another process appended an event that takes this one's place: look again, and decide anew."""

    def __init__(self, decision_id: str) -> None:
        super().__init__(f"another process has recorded something for {decision_id} in the meantime")
        self.decision_id = decision_id


class StoreFull(StoreError):
    """More events are waiting to be written than `limit`: the disk is slower than the traffic."""

    def __init__(self, pending: int, limit: int) -> None:
        super().__init__(
            f"{pending} events wait to be written and the limit is {limit}: the disk is slower than the traffic"
        )
        self.pending, self.limit = pending, limit


class StoreClosed(StoreError):
    """The store was closed."""

    def __init__(self) -> None:
        super().__init__("the store was closed")


class StoreFailed(StoreError):
    """Reading or writing failed; `cause` is the first failure."""

    def __init__(self, where: str, cause: BaseException) -> None:
        super().__init__(f"{where} failed: {cause}; put that right and start the service again")
        self.where, self.cause = where, cause


class StoreUnusable(StoreError):
    """`where` cannot be opened as a store, for `reason`."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"cannot use {where} as the operational store: {reason}")
        self.where, self.reason = where, reason
