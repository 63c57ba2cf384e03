"""One call for all who ask the same at the same time: the first leads, the others wait for what it brings.

Knows neither what is asked nor what an answer is. Whoever leads never fails those who wait: they go on by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Generic, TypeVar

from serving.errors import CallerGone

__all__ = ["Flight", "Flights"]

T = TypeVar("T")


class Flight(Generic[T]):
    """A call under way that others may wait for; `land` is what it brings them, None or nothing: no answer to share."""

    def __init__(self, outcome: asyncio.Future[T | None] | None) -> None:
        self._outcome = outcome

    def land(self, value: T | None) -> None:
        """Share an answer; of one that nobody can wait for, nothing."""
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(value)


class Flights(Generic[T]):
    """Those under way, by key: never more than calls are."""

    def __init__(self) -> None:
        self._under_way: dict[bytes, asyncio.Future[T | None]] = {}

    def __contains__(self, key: object) -> bool:
        return key in self._under_way

    async def join(self, key: bytes, wait_s: float) -> T | None:
        """What the call under way brings within `wait_s`; None: nothing, and it is for the caller to make its own.

        Where the one that led went away, one of those who wait leads, and the others wait for it.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + wait_s
        while (outcome := self._under_way.get(key)) is not None:
            await asyncio.wait((outcome,), timeout=max(0.0, until - loop.time()))
            if not outcome.done():
                return None
            if not outcome.cancelled():
                return outcome.result()
        return None

    @contextlib.contextmanager
    def leading(self, key: bytes) -> Iterator[Flight[T]]:
        """Lead while the block runs; where there is a call of this key already, fly alone."""
        if key in self._under_way:
            yield Flight(None)
            return
        outcome: asyncio.Future[T | None] = asyncio.get_running_loop().create_future()
        self._under_way[key] = outcome
        try:
            yield Flight(outcome)
        except (asyncio.CancelledError, CallerGone):
            outcome.cancel()  # it says nothing about the answer: another leads
            raise
        finally:
            del self._under_way[key]
            if not outcome.done():
                outcome.set_result(None)
