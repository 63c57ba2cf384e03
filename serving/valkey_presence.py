"""What processes that share a store know of one another at this moment: who lives, who leads, what they call out.

Nothing here is durable, and nothing here knows of events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress

from serving.valkey_link import ValkeyLink, ended
from serving.valkey_scripts import LEASE, LEAVE

__all__ = ["Presence"]

_ALIVE_MS = 10_000
_BEAT_S = 1.0
_LISTEN_S = 1.0
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
                    known = len(self._heard)
                    while known == len(self._heard):  # a topic more: subscribe anew
                        message = await channel.get_message(timeout=_LISTEN_S)
                        if message is not None:
                            self._hear(message["channel"], message["data"])
            except self._link.failed as error:
                _logger.warning("hears nothing of the other processes: %s", error)
                await asyncio.sleep(_LISTEN_S)

    def _hear(self, channel: bytes, data: bytes) -> None:
        if data[:_WRITER_BYTES] != self._writer.encode():
            self._heard[channel](data[_WRITER_BYTES:])
