"""Small requests that go to a model's endpoint as one, and the answers cut apart again.

Owns who waits for whom. What fits together, and how it is joined and cut, is `batch_forms`'s; how a call is sent is the
caller's own. Each request keeps its decision, its outcome and its error: a batch is nothing the log knows of.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from serving.errors import UpstreamError, UpstreamRefused
from serving.traffic.batch_forms import Form, form_of
from serving.traffic.cache_settings import BatchingSettings
from serving.wire import Call

__all__ = ["Batcher", "Shared", "own_copy"]

_log = logging.getLogger("pointsman.batching")
SendOne = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Shared:
    """One request's answer, out of an upstream call that answered `calls` of them."""

    answer: Any
    calls: int = 1


@dataclass(slots=True, eq=False)
class _Member:
    call: Call
    form: Form
    send_one: SendOne
    answer: asyncio.Future[Shared]


@dataclass(slots=True, eq=False)
class _Batch:
    """Requests that will go together; `task` is the upstream call once it is under way."""

    members: list[_Member] = field(default_factory=list)
    timer: asyncio.TimerHandle | None = None
    task: asyncio.Task[None] | None = None
    size: int = 0
    tokens: int = 0


class Batcher:
    """The batches of one endpoint, which takes `most_at_once` calls. All methods belong to the event loop's thread.

    `spared` is told how many upstream calls a batch made unnecessary.
    """

    def __init__(
        self,
        settings: BatchingSettings,
        *,
        most_at_once: int | None = None,
        spared: Callable[[int], None] | None = None,
    ) -> None:
        self._settings, self._spared = settings, spared
        self._places = None if most_at_once is None else asyncio.Semaphore(most_at_once)
        self._open: dict[tuple[str, bytes], _Batch] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.batches = self.joined = 0

    async def send(self, call: Call, tenant: str, send_one: SendOne) -> Shared:
        """The answer to `call`, alone or as part of a batch; raises what `send_one` does.

        `send_one` of one of the members sends them all, so it must depend on nothing of its own caller but the call it
        is given. The caller waits as long as it likes: its own deadline cancels its waiting, and the upstream call only
        when nobody waits for it any more. (The shortest deadline of all would fail the others with it.)
        """
        form = form_of(call)
        settings = self._settings
        if self._places is not None:
            send_one = _in_its_place(send_one, self._places)
        if form is None or form.size > settings.max_size or self._too_long(form.tokens):
            return Shared(await send_one(call))
        key = ("" if settings.across_tenants else tenant, form.key)
        batch = self._open.get(key)
        too_many = batch is not None and batch.size + form.size > settings.max_size
        if batch is not None and (too_many or self._too_long(batch.tokens + form.tokens)):
            self._start(key, batch)
            batch = None
        loop = asyncio.get_running_loop()
        if batch is None:
            batch = self._open[key] = _Batch()
            batch.timer = loop.call_later(settings.max_wait_ms / 1000, self._start, key, batch)
        member = _Member(call, form, send_one, loop.create_future())
        batch.members.append(member)
        batch.size += form.size
        batch.tokens += form.tokens
        if batch.size >= settings.max_size:
            self._start(key, batch)
        try:
            return await member.answer
        finally:
            if member.answer.cancelled():
                self._leave(key, batch, member)

    async def close(self) -> None:
        """End what is under way."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _too_long(self, tokens: int) -> bool:
        return self._settings.max_tokens is not None and tokens > self._settings.max_tokens

    def _leave(self, key: tuple[str, bytes], batch: _Batch, member: _Member) -> None:
        if batch.task is None:
            batch.members.remove(member)
            batch.size -= member.form.size
            batch.tokens -= member.form.tokens
            if not batch.members:
                self._close(key, batch)
        elif all(other.answer.done() for other in batch.members):
            batch.task.cancel()

    def _close(self, key: tuple[str, bytes], batch: _Batch) -> None:
        if batch.timer is not None:
            batch.timer.cancel()
        if self._open.get(key) is batch:
            del self._open[key]

    def _start(self, key: tuple[str, bytes], batch: _Batch) -> None:
        self._close(key, batch)
        if batch.task is not None or not batch.members:
            return
        self.batches += 1
        self.joined += len(batch.members)
        batch.task = asyncio.create_task(_run(batch.members, self._spared))
        self._tasks.add(batch.task)
        batch.task.add_done_callback(self._tasks.discard)


async def _run(members: list[_Member], spared: Callable[[int], None] | None) -> None:
    """Send them as one; where the fault may be one member's, each once more alone.

    What is nobody's fault in particular (a time-out, a 5xx, no connection) is everybody's error: to ask again for each
    would be a storm on an endpoint in trouble, and whoever may retry does so above.
    """
    try:
        if len(members) > 1 and await _together(members):
            if spared is not None:
                spared(len(members) - 1)
        else:
            await asyncio.gather(*(_alone(member) for member in members if not member.answer.done()))
    except Exception as error:  # noqa: BLE001 - it is the members', who raise it
        for member in members:
            if not member.answer.done():
                member.answer.set_exception(own_copy(error))
    finally:
        for member in members:
            member.answer.cancel()  # the task was cancelled: nobody waits, or the service ends


async def _together(members: list[_Member]) -> bool:
    """Send them as one and hand out the answers; False where one of them may have spoilt it for all."""
    first, forms = members[0], [member.form for member in members]
    try:
        answers = first.form.split(await first.send_one(first.form.join(forms)), forms)
    except UpstreamRefused:
        return False
    except ValueError as error:
        _log.info("a batch of calls of %s goes one by one: %s", first.call.model, error)
        return False
    except UpstreamError as error:
        if error.code == "upstream_malformed":
            return False
        raise
    for member, answer in zip(members, answers, strict=True):
        if not member.answer.done():
            member.answer.set_result(Shared(answer, len(members)))
    return True


async def _alone(member: _Member) -> None:
    try:
        answer = await member.send_one(member.call)
    except Exception as error:  # noqa: BLE001 - it is the member's, which raises it
        if not member.answer.done():
            member.answer.set_exception(error)
    else:
        if not member.answer.done():
            member.answer.set_result(Shared(answer))


def _in_its_place(send_one: SendOne, places: asyncio.Semaphore) -> SendOne:
    async def send(call: Call) -> Any:
        async with places:
            return await send_one(call)

    return send


def own_copy(error: Exception) -> Exception:
    """A copy of an error that several callers get: each writes its own decision's id into it."""
    copied = type(error).__new__(type(error))
    copied.args = error.args
    copied.__dict__.update(error.__dict__)
    return copied
