"""The part of a shared store that budgets and rates rely on, over a real server: counters, and a sign of life."""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import valkey.asyncio

from serving.access.shared_scripts import Scripts
from serving.store import Tally


class TrialCounts:
    """What `count` was told goes out with `flush`, in one transaction, as with the events of one turn."""

    healthy = True

    def __init__(self, url: str, name: str) -> None:
        self.client = valkey.asyncio.Valkey.from_url(url)
        self.name, self.writer = name, secrets.token_hex(8)
        self._pending: list[Tally] = []
        self._noted: list[bytes] = []

    def key(self, text: str) -> str:
        return f"{{{self.name}}}:{text}"

    def scripts(self, timeout_s: float = 5.0) -> Scripts:
        return Scripts(self, timeout_s)

    async def live(self, for_ms: int = 60_000) -> None:
        await self.client.set(self.key(f"alive:{self.writer}"), "1", px=for_ms)

    async def die(self) -> None:
        """As if it had not been heard of for ten seconds."""
        await self.client.delete(self.key(f"alive:{self.writer}"))

    def count(self, tallies: Sequence[Tally], *, with_append: bool = False) -> None:
        del with_append  # nothing is ever refused here
        self._pending += tallies

    def note(self, what: bytes) -> None:
        """In place of an event: an entry in a list."""
        self._noted.append(what)

    async def flush(self) -> None:
        pending, self._pending = self._pending, []
        noted, self._noted = self._noted, []
        async with self.client.pipeline(transaction=True) as pipe:
            if noted:
                pipe.rpush(self.key("noted"), *noted)
            for counter, part, amount, expires_at in pending:
                pipe.hincrby(self.key(f"count:{counter}"), part, amount)
                pipe.expireat(self.key(f"count:{counter}"), int(expires_at))
            await pipe.execute()
