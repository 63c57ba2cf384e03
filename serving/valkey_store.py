"""The operational store on one Valkey server, shared by many processes: appends in groups, each group one script.

Nothing is folded from what this process appends, only from what comes back in the stream (`follow`), in which all
processes read one order. It never looks into a payload and never knows what is learned from one.
"""
# ruff: noqa: D102 - the contract's docstrings are in serving.store

from __future__ import annotations

import asyncio
import logging
import math
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from serving.store import Event, Kind, StoreClosed, StoreError, StoreFailed, StoreFull, Tally
from serving.valkey_calls import Call, Calls
from serving.valkey_link import ValkeyLink, ended
from serving.valkey_presence import Presence
from serving.valkey_scripts import COMMIT, FIND, LETTERS, SNAPSHOT, WITHOUT

__all__ = ["ValkeyStore"]

_KINDS: dict[bytes, Kind] = {letter: kind for kind, letter in LETTERS.items()}
_TASK_LIMIT = 16  # snapshots and prunings waiting; each is one caller's, who waits for it
_MESSAGE_LIMIT = 1000  # messages waiting; nobody waits for one, and what is too much is dropped
_FOLLOW_EVENTS = 500  # at once, between which the loop gets to other things
_FOLLOW_BLOCK_MS = 500

_logger = logging.getLogger(__name__)


class _Batch:
    """What one script does, as its arguments, and who waits for it."""

    __slots__ = ("arguments", "calls", "messages", "prunings", "snapshots", "waiters")

    def __init__(self) -> None:
        self.arguments: list[bytes | str | int] = []
        self.calls: list[int] = []
        self.messages = 0
        self.prunings: list[asyncio.Future[int]] = []
        self.snapshots: list[asyncio.Future[None]] = []
        self.waiters: list[asyncio.Future[None]] = []


class ValkeyStore:
    """`serving.store.SharedStore` at `url`, under keys `{name}:…`. Construct it on the running event loop.

    Durable means what the server's settings make of it: with `appendfsync always` a power cut loses nothing.
    `queue_limit`, `commit_interval_s`, `linger_s`: as of the store on SQLite. `retry_s`: how long a server that cannot
    be reached is asked again before the store has failed. Raises StoreUnusable.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "pointsman",
        queue_limit: int = 20_000,
        commit_interval_s: float = 0.002,
        linger_s: float = 0.02,
        retry_s: float = 5.0,
    ) -> None:
        self.name, self.writer = name, secrets.token_hex(8)
        self._queue_limit, self._commit_interval_s, self._linger_s = queue_limit, commit_interval_s, linger_s
        self._loop = asyncio.get_running_loop()
        self._link = ValkeyLink(url, name, retry_s)
        self.client = self._link.client
        self._commit_script = self._link.committer.script(COMMIT, self._link.key("log"))
        self._find_script = self._link.script(self._link.finder, FIND)
        self._snapshot_script = self._link.script(self._link.reader, SNAPSHOT)
        self._without_script = self._link.script(self._link.reader, WITHOUT)
        self._calls = Calls(self._link.position)
        self._presence = Presence(self._link, self.writer)
        self._batch = _Batch()
        self._last_call = self._last_batch = 0
        self._urgent = self._timer_armed = self._lingering = self._closed = self._handing_on = False
        self._next_commit_at = 0.0
        self._error: BaseException | None = None
        self._in_flight: asyncio.Task[None] | None = None
        self._following: asyncio.Task[None] | None = None

    # Appending.

    @property
    def position(self) -> int:
        return self._calls.known + self._calls.pending

    @property
    def placed_position(self) -> int:
        return self._calls.followed

    @property
    def pending(self) -> int:
        return self._calls.pending

    @property
    def healthy(self) -> bool:
        return self._error is None and not self._closed

    def append(self, events: Sequence[Event], placed: Callable[[], None] | None = None) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._take(events, placed, future)
        self._hasten()
        return future

    def append_nowait(self, events: Sequence[Event], placed: Callable[[], None] | None = None) -> None:
        self._take(events, placed, None)
        self._linger()

    def count(self, tallies: Sequence[Tally], *, with_append: bool = False) -> None:
        self._check_open()
        only_with = self._last_call if with_append else ""
        for counter, part, amount, expires_at in tallies:
            self._batch.arguments += ("c", counter, part, amount, math.ceil(expires_at), only_with)
        self._linger()

    def save_snapshot(self, seq: int, payload: bytes) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._submit("s", seq, payload)
        self._batch.snapshots.append(future)
        return future

    async def prune(self, before_ts: float, up_to_seq: int, limit: int) -> int:
        future: asyncio.Future[int] = self._loop.create_future()
        self._submit("r", repr(float(before_ts)), up_to_seq, limit)
        self._batch.prunings.append(future)
        return await future

    def publish(self, topic: str, payload: bytes) -> None:
        """Tell the other processes, those that listen now; lost without a word if the server is away."""
        if self.healthy and self._batch.messages < _MESSAGE_LIMIT:
            self._batch.messages += 1
            self._batch.arguments += ("m", topic, self.writer.encode() + payload)
            self._hasten()

    def subscribe(self, topic: str, heard: Callable[[bytes], None]) -> None:
        """Call `heard` for what others publish from now on; it may not raise."""
        self._presence.subscribe(topic, heard)

    async def lease(self, role: str, ttl_s: float) -> bool:
        """Whether this process has the role for the next `ttl_s`: nobody else has it. Call it again well before."""
        return self.healthy and await self._presence.lease(role, ttl_s)

    async def flush(self) -> None:
        self._check_open()
        await self._flush()

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        with suppress(StoreFailed):  # reported when it happened, to everyone who waited
            if self._error is None:
                await self._flush()
        if self._following is not None:
            await ended([self._following])
        self._calls.end_following()
        await self._presence.close()
        await self._link.close()

    # Reading.

    def find(self, decision_id: str) -> list[Event]:
        try:
            name = decision_id.encode()
        except UnicodeEncodeError:  # a lone surrogate: no decision is called that
            return []
        found = self._ask(lambda: self._find_script([name]), once=not self._handing_on) if name else []
        return [_event(entry, fields) for entry, fields in found]

    def read(self, after_seq: int, limit: int) -> list[Event]:
        found = self._ask(lambda: self._link.reader.xrange(self._link.key("events"), after_seq + 1, "+", limit))
        return [_event(*entry) for entry in found]

    def without_feedback(
        self, after: tuple[float, int], up_to_ts: float, limit: int
    ) -> tuple[list[str], tuple[float, int]]:
        looked_at = [repr(float(after[0])), after[1], repr(float(up_to_ts)), limit]
        ts, seq, *found = self._ask(lambda: self._without_script(looked_at))
        return list(dict.fromkeys(name.decode() for name in found)), ((float(ts), int(seq)) if seq else after)

    def latest_snapshot(self) -> tuple[int, bytes] | None:
        found = self._ask(lambda: self._snapshot_script([]))
        return (int(found[0]), found[1]) if found else None

    def _ask(self, question: Callable[[], Any], *, once: bool = False) -> Any:
        if self._closed:
            raise StoreClosed
        try:
            return question() if once else self._link.insist_now(question)
        except self._link.failed as error:
            raise self._failure("reading", error) from error

    # Following.

    async def follow(self, after_seq: int, foreign: Callable[[Event], None]) -> None:
        self._check_open()
        self._calls.begin_following(after_seq)
        self._following = following = asyncio.create_task(self._follow(after_seq, foreign))
        try:
            await asyncio.wait([following])
        finally:
            await ended([following])
            self._following = None
            if not following.cancelled() and (error := following.exception()) is not None:
                _logger.error("an event could not be acted upon", exc_info=error)
                self._fail(error)  # to go on without it would be to learn something else than the others
            self._calls.end_following()
        if self._error is not None:
            raise self._failure("following", self._error)

    async def _follow(self, last: int, foreign: Callable[[Event], None]) -> None:
        read = ("XREAD", "COUNT", _FOLLOW_EVENTS, "BLOCK", _FOLLOW_BLOCK_MS, "STREAMS", self._link.key("events"))

        async def further() -> Any:
            return await self._link.follower.ask(*read, f"{last}-0")

        while True:
            try:
                streams = await self._link.insist(further)
            except self._link.failed as error:
                self._fail(error)
                return
            for entry, fields in streams[0][1] if streams else ():
                event = _event(entry, fields)
                if event.seq != last + 1:
                    gone = f"events {last + 1} to {event.seq - 1} were deleted before this process read them"
                    self._fail(StoreError(gone))
                    return
                last = event.seq
                self._hand_on(event, fields[7].decode(), foreign)
            if not streams:
                await self._check_log()
            await asyncio.sleep(0)

    def _hand_on(self, event: Event, origin: str, foreign: Callable[[Event], None]) -> None:
        writer, _, call = origin.partition(":")
        self._handing_on = True  # what is looked up meanwhile must be found, or this process could not go on
        try:
            if writer == self.writer:
                self._calls.came_back(int(call), event.seq)
            else:
                self._calls.reached(event.seq)
                foreign(event)
        finally:
            self._handing_on = False

    async def _check_log(self) -> None:
        """That nothing comes may also be for the log's being another: then all is lost that was learned here."""
        known = self._calls.known  # before it is asked: commits are answered meanwhile
        with suppress(*self._link.failed):  # the next read meets that trouble, too
            async with asyncio.timeout(1.0):
                log_id, position = await self._link.follower.ask("HMGET", self._link.key("log"), "id", "position")
            if log_id != self._link.log_id or int(position) < known:
                self._fail(StoreError("the server lost events that were acknowledged"))

    # Committing: one batch at a time, since the next may have to name what this one left.

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._failure("writing", self._error)
        if self._closed:
            raise StoreClosed

    def _take(
        self, events: Sequence[Event], placed: Callable[[], None] | None, future: asyncio.Future[None] | None
    ) -> None:
        self._check_open()
        if self._calls.pending + len(events) > self._queue_limit:
            raise StoreFull(self._calls.pending, self._queue_limit)
        number = self._last_call + 1
        arguments: list[bytes | str | int] = ["e", number, len(events)]
        for event in events:
            nth = "" if event.nth is None else event.nth
            arguments += (LETTERS[event.kind], event.decision_id.encode(), repr(float(event.ts)), event.payload, nth)
        self._last_call = number
        self._batch.arguments += arguments
        self._batch.calls.append(number)
        refusable = next((event.decision_id for event in events if event.nth is not None), "")
        self._calls.begin(number, Call(len(events), len(events), refusable, placed if events else None, future))
        if placed is not None and not events:
            placed()

    def _submit(self, *arguments: bytes | str | int) -> None:
        self._check_open()
        if (waiting := len(self._batch.snapshots) + len(self._batch.prunings)) >= _TASK_LIMIT:
            raise StoreFull(waiting, _TASK_LIMIT)
        self._batch.arguments += arguments
        self._hasten()

    async def _flush(self) -> None:
        future: asyncio.Future[None] = self._loop.create_future()
        self._batch.waiters.append(future)
        self._urgent = True
        self._hand_over()
        await future

    def _linger(self) -> None:
        if not self._lingering:  # one timer serves all that linger: those that came late wait less
            self._lingering = True
            self._loop.call_later(self._linger_s, self._end_linger)

    def _end_linger(self) -> None:
        self._lingering = False
        self._urgent = True
        self._hand_over()

    def _hasten(self) -> None:
        self._urgent = True
        if self._in_flight is None and not self._timer_armed:
            self._timer_armed = True
            # A timer even when it is due now: it groups what this turn of the loop still appends.
            self._loop.call_at(self._next_commit_at, self._on_timer)

    def _on_timer(self) -> None:
        self._timer_armed = False
        self._hand_over()

    def _hand_over(self) -> None:
        batch = self._batch
        if self._in_flight is not None or self._error is not None or not (batch.arguments or batch.waiters):
            return
        self._batch, self._urgent = _Batch(), False
        self._next_commit_at = self._loop.time() + self._commit_interval_s
        self._in_flight = asyncio.create_task(self._commit(batch))

    async def _commit(self, batch: _Batch) -> None:
        try:
            if batch.arguments:
                self._last_batch += 1
                head = [self._link.log_id, self._calls.known, self.writer, self._last_batch]
                # An unanswered batch is sent again: the script takes none twice.
                answer = await self._link.insist(lambda: self._commit_script([*head, *batch.arguments]))
                self._finish(batch, answer.decode())
        except self._link.failed as error:
            self._fail(error, batch)
            return
        finally:
            self._in_flight = None
        for future in batch.waiters:
            _resolve(future, None)
        if self._urgent:
            self._hasten()

    def _finish(self, batch: _Batch, answer: str) -> None:
        position, refused, deleted = answer.split("|")
        self._calls.answered(batch.calls, {int(call) for call in refused.split(",") if call}, int(position))
        for saved in batch.snapshots:
            _resolve(saved, None)
        for pruned, count in zip(batch.prunings, filter(None, deleted.split(",")), strict=True):
            _resolve(pruned, int(count))

    def _fail(self, error: BaseException, batch: _Batch | None = None) -> None:
        if self._error is None:
            self._error = error
            lost = self._calls.pending
            _logger.error("writing %s failed, %d events are lost: %s", self._link.where, lost, error)
        waiting, self._batch = self._batch, _Batch()
        failure = self._failure("writing", self._error)
        self._calls.fail(failure)
        for part in (batch, waiting) if batch is not None else (waiting,):
            futures: list[asyncio.Future[Any]] = [*part.waiters, *part.snapshots, *part.prunings]
            for future in futures:
                if not future.done():
                    future.set_exception(failure)
        if self._following is not None:
            self._following.cancel()

    def _failure(self, doing: str, error: BaseException) -> StoreFailed:
        return StoreFailed(f"{doing} {self._link.where}", error)


def _event(entry: bytes, fields: list[bytes]) -> Event:
    """By the order in which COMMIT writes the fields, names and values in turn."""
    return Event(_KINDS[fields[1]], fields[3].decode(), float(fields[5]), fields[9], int(entry[:-2]))


def _resolve(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():  # its waiter may have gone
        future.set_result(result)
