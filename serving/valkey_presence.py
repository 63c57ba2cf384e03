"""What processes that share a store know of one another at this moment: who lives, who leads, what they call out.

Nothing here is durable, and nothing here knows of events.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from serving.valkey_link import ValkeyLink, ended
from serving.valkey_scripts import LEASE, LEAVE

if TYPE_CHECKING:
    from valkey.asyncio.client import PubSub

__all__ = ["Presence"]

_ALIVE_MS = 10_000
_BEAT_S = 1.0
_LISTEN_S = 1.0
_SILENCE_S = 5.0  # of a channel that is asked for a sign of life every second
_PATIENCE_S = 1.0
_WRITER_BYTES = 16  # before each message

_logger = logging.getLogger(__name__)


class Presence:
    """One process among its siblings: `{name}:alive:<writer>` exists while it lives, and ten seconds longer."""

    def __init__(self, link: ValkeyLink, writer: str) -> None:
        self._link, self._writer = link, writer
        self._lease, self._leave = link.script(link.client, LEASE), link.script(link.client, LEAVE)
        self._alive = link.key(f"alive:{writer}")
        link.insist_now(lambda: link.reader.set(self._alive, "1", px=_ALIVE_MS))
        self._roles: set[str] = set()
        self._heard: dict[bytes, Callable[[bytes], None]] = {}
        self._tasks = [asyncio.create_task(self._beat())]

    def subscribe(self, topic: str, heard: Callable[[bytes], None]) -> None:
        """Hear of a topic from now on, or by another `heard`."""
        if not self._heard:
            self._tasks.append(asyncio.create_task(self._listen()))
        self._heard[self._link.key(f"topic:{topic}").encode()] = heard

    async def lease(self, role: str, ttl_s: float) -> bool:
        """Whether the role is this process's; not if the server cannot be asked."""
        self._roles.add(role)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return bool(await self._lease([role, self._writer, int(ttl_s * 1000)]))
        except self._link.failed as error:
            _logger.warning("cannot ask for the role %s: %s", role, error)
            return False

    async def close(self) -> None:
        """Leave: whoever looks sees at once that this process is gone, and its roles are free."""
        await ended(self._tasks)
        with suppress(*self._link.failed):
            async with asyncio.timeout(_PATIENCE_S):
                await self._leave([self._writer, *self._roles])

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_S)
            with suppress(*self._link.failed):  # tried again in a second; commits tell of lasting trouble
                async with asyncio.timeout(_PATIENCE_S):
                    await self._link.client.set(self._alive, "1", px=_ALIVE_MS)

    async def _listen(self) -> None:
        while True:
            try:
                async with self._link.client.pubsub(ignore_subscribe_messages=True) as channel:
                    await channel.subscribe(*self._heard)
                    await self._hear_all(channel)
            except self._link.failed as error:
                _logger.warning("hears nothing of the other processes: %s", error)
                await asyncio.sleep(_LISTEN_S)

    async def _hear_all(self, channel: PubSub) -> None:
        """Until there is a topic more. Raises TimeoutError for a connection that something on the way has forgotten."""
        known, heard_at = len(self._heard), time.monotonic()
        while known == len(self._heard):
            message = await channel.get_message(timeout=_LISTEN_S)
            if message is None:
                if time.monotonic() - heard_at > _SILENCE_S:
                    raise TimeoutError(f"the server has said nothing for {_SILENCE_S:g} s")
                await channel.ping()
                continue
            heard_at = time.monotonic()
            if message["type"] == "message":
                self._hear(message["channel"], message["data"])

    def _hear(self, channel: bytes, data: bytes) -> None:
        if data[:_WRITER_BYTES] != self._writer.encode():
            self._heard[channel](data[_WRITER_BYTES:])
