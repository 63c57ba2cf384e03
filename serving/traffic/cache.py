"""Answers by key: kept for a while, as long as there is room, the least recently used going first.

A pure store. Never knows what a key stands for, who asks, or what time it is: `now` is the caller's monotonic clock.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

__all__ = ["ENTRY_BYTES", "AnswerCache", "Stored"]

ENTRY_BYTES: Final = 512
"""What an entry takes beside its answer, about: the key, the objects and their places in the table."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A complete answer: `body` is the JSON that was sent, `origin` the decision it was made for, `model` who gave it.

    `tokens` are those of input and output together, `cost_usd` what it cost; None: unknown.
    """

    body: bytes
    origin: str
    model: str
    tokens: int | None
    cost_usd: float | None


class AnswerCache:
    """At most `max_entries` answers, `max_bytes` and `max_tokens` in all, each for `ttl_s` seconds."""

    def __init__(self, ttl_s: float, max_entries: int, max_bytes: int, max_tokens: int | None = None) -> None:
        self._ttl_s, self._max_entries = ttl_s, max_entries
        self._max_bytes, self._max_tokens = max_bytes, max_tokens
        self._kept: OrderedDict[bytes, tuple[float, Stored]] = OrderedDict()
        self.bytes = self.tokens = self.evicted = 0

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: bytes, now: float) -> tuple[Stored, float] | None:
        """The answer and its age in seconds; None where there is none, or none any more."""
        found = self._kept.get(key)
        if found is None:
            return None
        age_s = max(0.0, now - found[0])
        if age_s >= self._ttl_s:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[1], age_s

    def put(self, key: bytes, stored: Stored, now: float) -> bool:
        """Keep an answer, in place of one with the same key; False where it alone is more than may be kept."""
        if key in self._kept:
            self._drop(key)
        size, tokens = len(stored.body) + ENTRY_BYTES, stored.tokens or 0
        if size > self._max_bytes or (self._max_tokens is not None and tokens > self._max_tokens):
            return False
        self._kept[key] = (now, stored)
        self.bytes += size
        self.tokens += tokens
        while self._over():
            self._drop(next(iter(self._kept)))
            self.evicted += 1
        return True

    def clear(self) -> int:
        """Drop all; how many there were."""
        count = len(self._kept)
        self._kept.clear()
        self.bytes = self.tokens = 0
        return count

    def _over(self) -> bool:
        full = len(self._kept) > self._max_entries or self.bytes > self._max_bytes
        return full or (self._max_tokens is not None and self.tokens > self._max_tokens)

    def _drop(self, key: bytes) -> None:
        _, stored = self._kept.pop(key)
        self.bytes -= len(stored.body) + ENTRY_BYTES
        self.tokens -= stored.tokens or 0
