"""The limits of `serving.access.rates`, of one service that runs in several workers: its buckets are on their server.

The law is that of one process, on the server's clock. The buckets last as long as the server does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import orjson

from serving.access.rates import Bucket, Rates, Taken, headers_of, refusal, sizes_of
from serving.access.scopes import member_of
from serving.access.shared_scripts import GIVE, TAKE

if TYPE_CHECKING:
    from serving.access.budget_settings import LimitEntry
    from serving.access.principal import Principal
    from serving.access.shared_scripts import Scripts

__all__ = ["SharedRates"]


@dataclass(slots=True)
class _SharedBucket(Bucket):
    """As it was when the server was last asked."""

    key: str = ""


class SharedRates(Rates):
    """Asks the server once for a call that some limit concerns; `max_counters` bounds nothing there: buckets expire."""

    def __init__(self, scripts: Scripts, entries: Sequence[LimitEntry] = (), *, max_counters: int = 100_000) -> None:
        super().__init__(entries, max_counters=max_counters)
        self._scripts = scripts

    async def take(self, principal: Principal, tokens: int, now: float) -> Taken:
        """As in one process; raises Unavailable, too, where the server does not answer in time."""
        buckets = [
            _SharedBucket(kind, size, size, now, _key(entry, kind, member))
            for entry in self._entries
            if (member := member_of(entry.scope, entry.match, entry.tier, principal)) is not None
            for kind, size in sizes_of(entry)
        ]
        if not buckets:
            return Taken()
        args: list[str | int | float] = [tokens]
        for bucket in buckets:
            args += [bucket.kind, bucket.capacity]
        enough, *levels = await self._scripts.run(TAKE, [bucket.key for bucket in buckets], args)
        for bucket, level in zip(buckets, levels, strict=True):
            bucket.level = float(level)
        if not enough:
            raise refusal(buckets, tokens)
        return Taken(tokens, [bucket for bucket in buckets if bucket.kind == "tokens"], headers_of(buckets))

    def settle(self, taken: Taken, tokens: int, now: float) -> None:
        """As in one process, and without waiting; what does not reach the server flows in within a minute anyway."""
        del now  # the server's clock counts
        buckets, taken.buckets = taken.buckets, []
        if buckets and taken.tokens != tokens:
            keys = [bucket.key for bucket in buckets if isinstance(bucket, _SharedBucket)]
            self._scripts.soon(GIVE, keys, [taken.tokens - tokens, *(bucket.capacity for bucket in buckets)])


def _key(entry: LimitEntry, kind: str, member: str) -> str:
    """Another for a limit that was changed: its bucket is full, as in one process."""
    form = [entry.scope, entry.match, entry.tier, entry.requests_per_minute, entry.tokens_per_minute, kind, member]
    return f"rate:{orjson.dumps(form).decode()}"
