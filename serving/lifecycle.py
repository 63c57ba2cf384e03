"""The life of the process: whether it takes calls, that it is asked to end, and how the calls under way end with it.

Ready → red (`drain_s`) → no new connections, calls finish (`grace_s`) → what is left is cut. Every call under way is
inside `call()`; nothing here knows what a call is, and nothing is opened or closed.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Self

from serving.errors import Unavailable

if TYPE_CHECKING:
    from serving.settings import ServerSettings

__all__ = ["CallUnderWay", "Life"]

_QUIET_S = 0.1  # without a call under way, before connections that are kept are closed: a call may be on its way
_LAST_WORDS_S = 2.0  # that calls which were cut get for their outcomes and last events


class Life:
    """One process's. `server`: how long it may take to end; a reload changes it."""

    def __init__(self, server: ServerSettings) -> None:
        self.server = server
        self.ready = False
        self.leaving = False  # no connection is kept for another call
        self.over = False  # what is still under way is cut, and nothing more is begun
        self._asked, self._hurried, self._none_left = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._none_left.set()
        self._calls: set[asyncio.Timeout] = set()

    def ask(self) -> None:
        """Ask it to end; asked again, it waits for nobody any more."""
        (self._hurried if self._asked.is_set() else self._asked).set()

    async def asked(self) -> None:
        """Wait until it is asked to end."""
        await self._asked.wait()

    def call(self) -> CallUnderWay:
        """`async with life.call()`: a call under way; Unavailable where the end cuts it."""
        return CallUnderWay(self)

    async def drain(self) -> None:
        """Be unready, while calls are still taken, for as long as those who send them need to see it."""
        self.ready, self.leaving = False, True
        with suppress(TimeoutError):
            async with asyncio.timeout(self.server.drain_s):
                await self._hurried.wait()

    async def finish(self) -> None:
        """Let calls under way finish; cut those that take longer than the grace, or than an operator will wait."""
        self.leaving = True
        waiting = [asyncio.create_task(until) for until in (self._quiet(), self._hurry())]
        await asyncio.wait(waiting, timeout=self.server.shutdown_grace_s, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        self.over = True
        now = asyncio.get_running_loop().time()
        for timeout in self._calls:
            timeout.reschedule(now)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S):
                await self._none_left.wait()

    async def _quiet(self) -> None:
        """Wait until no call has been under way for a moment."""
        while True:
            await self._none_left.wait()
            await asyncio.sleep(_QUIET_S)
            if self._none_left.is_set():
                return

    async def _hurry(self) -> None:
        await self._hurried.wait()

    def begun(self, timeout: asyncio.Timeout) -> None:
        """One more call is under way."""
        self._calls.add(timeout)
        self._none_left.clear()

    def ended(self, timeout: asyncio.Timeout) -> None:
        """It is no more."""
        self._calls.discard(timeout)
        if not self._calls:
            self._none_left.set()


class CallUnderWay:
    """A call from its beginning to its end, or to that of the process."""

    __slots__ = ("_life", "_timeout")

    def __init__(self, life: Life) -> None:
        self._life, self._timeout = life, asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        if self._life.over:
            raise _stopping()
        await self._timeout.__aenter__()
        self._life.begun(self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._life.ended(self._timeout)
        try:
            await self._timeout.__aexit__(kind, error, trace)
        except TimeoutError:
            raise _stopping() from None


def _stopping() -> Unavailable:
    return Unavailable("the service is stopping")
