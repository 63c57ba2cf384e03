"""How fast callers call: a bucket of requests and one of tokens each, which fill up evenly over a minute.

In memory alone: after a restart every bucket is full. Tokens are taken by an estimate and put right once they are
known. Knows neither HTTP nor budgets; time is an argument, in unix seconds.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from serving.access.scopes import member_of
from serving.errors import RateLimited, Unavailable

if TYPE_CHECKING:
    from serving.access.budget_settings import LimitEntry
    from serving.access.principal import Principal

__all__ = ["Bucket", "Rates", "Taken", "headers_of", "refusal", "sizes_of"]

_MINUTE_S: Final = 60.0
_KINDS: Final = ("requests", "tokens")


@dataclass(slots=True)
class Bucket:
    """Holds at most `capacity`, as much as flows in in a minute; below 0 where an estimate was too low."""

    kind: str
    capacity: float
    level: float
    at: float

    def fill(self, now: float) -> None:
        """What has flowed in since."""
        self.level = min(self.capacity, self.level + max(0.0, now - self.at) * self.capacity / _MINUTE_S)
        self.at = max(self.at, now)

    def wait_s(self, level: float) -> float:
        """Seconds until it holds `level`."""
        return max(0.0, level - self.level) * _MINUTE_S / self.capacity


@dataclass(slots=True)
class Taken:
    """What a call has taken. `headers` are for its answer, or its error."""

    tokens: float = 0.0
    buckets: list[Bucket] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)


class Rates:
    """The limits of the configuration, over at most `max_counters` members."""

    def __init__(self, entries: Sequence[LimitEntry] = (), *, max_counters: int = 100_000) -> None:
        self._entries: tuple[LimitEntry, ...] = ()
        self._members: OrderedDict[tuple[int, str], list[Bucket]] = OrderedDict()  # last used last
        self.configure(entries, max_counters=max_counters)

    def configure(self, entries: Sequence[LimitEntry], *, max_counters: int) -> None:
        """Have these limits from now on; the buckets of those that were there before stay as full as they are."""
        before, self._entries, self._max = self._entries, tuple(entries), max_counters
        members, self._members = self._members, OrderedDict()
        for (i, member), buckets in members.items():
            if before[i] in self._entries:
                self._members[self._entries.index(before[i]), member] = buckets

    async def take(self, principal: Principal, tokens: int, now: float) -> Taken:
        """One request and an estimate of its tokens, from all buckets it concerns or from none; raises RateLimited.

        A call of more tokens than a minute allows goes when the bucket is full, and those after it wait the longer.
        """
        if not self._entries:
            return Taken()
        buckets: list[Bucket] = []
        for i, entry in enumerate(self._entries):
            member = member_of(entry.scope, entry.match, entry.tier, principal)
            if member is not None:
                buckets += self._buckets(i, member, now)
        for bucket in buckets:
            bucket.fill(now)
        if any(bucket.level < _needed(bucket, tokens) - 1e-9 for bucket in buckets):
            raise refusal(buckets, tokens)
        for bucket in buckets:
            bucket.level -= 1 if bucket.kind == "requests" else tokens
        return Taken(tokens, [b for b in buckets if b.kind == "tokens"], headers_of(buckets))

    def settle(self, taken: Taken, tokens: int, now: float) -> None:
        """The call took `tokens` in truth: the difference goes back, or is owed. Once for each `Taken`."""
        buckets, taken.buckets = taken.buckets, []
        for bucket in buckets:
            bucket.fill(now)
            bucket.level = min(bucket.capacity, bucket.level + taken.tokens - tokens)

    def _buckets(self, i: int, member: str, now: float) -> list[Bucket]:
        found = self._members.get((i, member))
        if found is None:
            self._make_room(now)
            found = [Bucket(kind, size, size, now) for kind, size in sizes_of(self._entries[i])]
            self._members[i, member] = found
        else:
            self._members.move_to_end((i, member))
        return found

    def _make_room(self, now: float) -> None:
        """Forget the member that was quiet the longest, if its buckets are full: nobody gains by it."""
        if len(self._members) < self._max:
            return
        key, buckets = next(iter(self._members.items()))
        for bucket in buckets:
            bucket.fill(now)
        if any(bucket.level < bucket.capacity - 1e-9 for bucket in buckets):
            raise Unavailable(f"{self._max} callers are counted at a time, the most metering.max_counters allows")
        del self._members[key]


def sizes_of(entry: LimitEntry) -> list[tuple[str, float]]:
    """The kinds of buckets that a limit has, each with its capacity."""
    sizes = (entry.requests_per_minute, entry.tokens_per_minute)
    return [(kind, float(size)) for kind, size in zip(_KINDS, sizes, strict=True) if size is not None]


def refusal(buckets: Sequence[Bucket], tokens: int) -> RateLimited:
    """Of a call that some bucket has too little for: by the one that it would wait for the longest."""
    wait_s, bucket = max(((b.wait_s(_needed(b, tokens)), b) for b in buckets), key=lambda item: item[0])
    message = f"more than {bucket.capacity:.0f} {bucket.kind} a minute; try again in {wait_s:.3g} s"
    return RateLimited(message, wait_s, headers_of(buckets))


def _needed(bucket: Bucket, tokens: int) -> float:
    return 1.0 if bucket.kind == "requests" else min(float(tokens), bucket.capacity)


def headers_of(buckets: Sequence[Bucket]) -> dict[str, str]:
    """OpenAI's headers, of each kind for the bucket with the least left."""
    headers: dict[str, str] = {}
    for kind in _KINDS:
        of_kind = [bucket for bucket in buckets if bucket.kind == kind]
        if of_kind:
            least = min(of_kind, key=lambda bucket: bucket.level)
            headers[f"x-ratelimit-limit-{kind}"] = f"{least.capacity:.0f}"
            headers[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(least.level + 1e-9)))
            headers[f"x-ratelimit-reset-{kind}"] = f"{least.wait_s(least.capacity):.3f}s"
    return headers
