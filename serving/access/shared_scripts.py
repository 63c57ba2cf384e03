"""What workers count together on one Valkey server: the scripts that do it in one step each, and how they are run.

Keys begin with `{name}:`, as the store's do. Knows whole numbers and buckets; never what a budget or a call is.

    count:held:…        hash: writer → what its calls under way may still spend
    count:spent:…       hash: spent → by outcomes that were counted here; base → by those before the first that was
    hold:<writer>:<n>   what became of a hold, for a minute: held, or void once it was undone
    known:<writer>      for a day after its last hold: what a writer without it holds is forgotten
    rate:…              hash: level, at (the server's clock); gone once the bucket is full
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, Protocol

from serving.access.shared_questions import LOST, Questions, QuestionsFull
from serving.errors import Unavailable
from serving.store import Tally

__all__ = ["GIVE", "HOLD", "SUMS", "TAKE", "UNDO", "Scripts", "SharedCounts"]

_log = logging.getLogger("pointsman.shared")
_MOST_WAITING: Final = 10_000

# KEYS: known, hold, then of each counter: spent, held. ARGV: prefix, writer, then of each counter: limit, amount, what
# was spent as far as the caller knows, unix time at which `spent` expires.
# Returns {0}, or {which, spent, held} where there is no room. Sums are doubles: exact up to 2^53, which is 9,007 USD in
# one window; above it the comparison is off by some 10^-16 of the sum, and what is kept stays exact up to 2^63.
HOLD: Final = """#!lua
local prefix, writer = ARGV[1], ARGV[2]
local before = redis.call('GET', KEYS[2])
if before then return {0} end
redis.call('SET', KEYS[1], '1', 'EX', 86400)

local function text(number) return string.format('%.0f', number) end

local function spent_of(key, folded, expires_at)
  local found = redis.call('HMGET', key, 'base', 'spent')
  local spent = tonumber(found[2] or '0')
  if found[1] then return tonumber(found[1]) + spent end
  redis.call('HINCRBY', key, 'base', folded)
  if found[2] then
    local base = redis.call('HINCRBY', key, 'base', '-' .. found[2])
    if base < 0 then redis.call('HSET', key, 'base', '0') end
  end
  redis.call('EXPIREAT', key, expires_at)
  return tonumber(redis.call('HGET', key, 'base')) + spent
end

local function held_of(key)
  local held = 0
  local found = redis.call('HGETALL', key)
  for i = 1, #found, 2 do
    local other, amount = found[i], tonumber(found[i + 1])
    if amount == 0 then
      redis.call('HDEL', key, other)
    elseif other == writer or redis.call('EXISTS', prefix .. 'alive:' .. other) == 1 then
      held = held + amount
    elseif redis.call('EXISTS', prefix .. 'known:' .. other) == 0 then
      redis.call('HDEL', key, other)
    end
  end
  return held
end

for i = 3, #KEYS, 2 do
  local at = 2 * i - 3
  local spent, held = spent_of(KEYS[i], ARGV[at + 2], ARGV[at + 3]), held_of(KEYS[i + 1])
  local left = tonumber(ARGV[at]) - spent - held
  if tonumber(ARGV[at + 1]) > left or left <= 0 then return {(i - 1) / 2, text(spent), text(held)} end
end
for i = 3, #KEYS, 2 do
  redis.call('HINCRBY', KEYS[i + 1], writer, ARGV[2 * i - 2])
  redis.call('EXPIRE', KEYS[i + 1], 172800)
end
redis.call('SET', KEYS[2], 'held', 'EX', 60)
return {0}
"""

# KEYS: hold, then what is held. ARGV: writer, then the amounts below 0. One that has not come yet will do nothing.
UNDO: Final = """#!lua
if redis.call('GET', KEYS[1]) == 'held' then
  for i = 2, #KEYS do redis.call('HINCRBY', KEYS[i], ARGV[1], ARGV[i]) end
end
redis.call('SET', KEYS[1], 'void', 'EX', 60)
return 1
"""

_BUCKET: Final = """#!lua
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000

local function filled(key, capacity)
  local found = redis.call('HMGET', key, 'level', 'at')
  if not found[1] then return capacity, now end
  local level, at = tonumber(found[1]), tonumber(found[2])
  return math.min(capacity, level + math.max(0, now - at) * capacity / 60), math.max(at, now)
end

local function keep(key, capacity, level, at)
  redis.call('HSET', key, 'level', string.format('%.17g', level), 'at', string.format('%.17g', at))
  redis.call('PEXPIRE', key, math.ceil((capacity - level) * 60000 / capacity) + 1000)
end
"""

# KEYS: buckets. ARGV: tokens, then of each bucket: kind, capacity. Returns {1 or 0, levels…}, taken from all or none.
TAKE: Final = (
    _BUCKET
    + """
local tokens, levels, ats, enough = tonumber(ARGV[1]), {}, {}, 1
for i = 1, #KEYS do
  local capacity = tonumber(ARGV[2 * i + 1])
  levels[i], ats[i] = filled(KEYS[i], capacity)
  local needed = ARGV[2 * i] == 'requests' and 1 or math.min(tokens, capacity)
  if levels[i] < needed - 1e-9 then enough = 0 end
end
local told = {enough}
for i = 1, #KEYS do
  if enough == 1 then
    levels[i] = levels[i] - (ARGV[2 * i] == 'requests' and 1 or tokens)
    keep(KEYS[i], tonumber(ARGV[2 * i + 1]), levels[i], ats[i])
  end
  told[i + 1] = string.format('%.17g', levels[i])
end
return told
"""
)

# KEYS: buckets. ARGV: what goes back (below 0: is owed), then the capacities.
GIVE: Final = (
    _BUCKET
    + """
for i = 1, #KEYS do
  local capacity = tonumber(ARGV[i + 1])
  local level, at = filled(KEYS[i], capacity)
  keep(KEYS[i], capacity, math.min(capacity, level + tonumber(ARGV[1])), at)
end
return 1
"""
)

# KEYS: what is held. ARGV: prefix. Returns the sum of the living of each.
SUMS: Final = """#!lua
local sums = {}
for i = 1, #KEYS do
  local held = 0
  local found = redis.call('HGETALL', KEYS[i])
  for j = 1, #found, 2 do
    if redis.call('EXISTS', ARGV[1] .. 'alive:' .. found[j]) == 1 then held = held + tonumber(found[j + 1]) end
  end
  sums[i] = string.format('%.0f', held)
end
return sums
"""


class SharedCounts(Protocol):
    """What is needed of the store that workers share (`serving.store.SharedStore`) beside its log."""

    client: Any
    """A `valkey.asyncio.Valkey` that answers in bytes."""

    name: str

    @property
    def writer(self) -> str:
        """As `SharedStore.writer`."""

    @property
    def healthy(self) -> bool:
        """Whether it still takes events."""

    def count(self, tallies: Sequence[Tally], *, with_append: bool = False) -> None:
        """As `SharedStore.count`."""


class Scripts:
    """Runs scripts on the store's server, each within `timeout_s`, or not at all."""

    def __init__(self, store: SharedCounts, timeout_s: float) -> None:
        self._store, self.timeout_s = store, timeout_s
        self.prefix = f"{{{store.name}}}:"
        self._questions = Questions(store.client, timeout_s, _MOST_WAITING)

    async def run(self, script: str, keys: Sequence[str], args: Sequence[str | int | float]) -> Any:
        """What it returns; raises Unavailable, and then it may have been done all the same."""
        if not self._store.healthy:
            raise Unavailable("the operational store has failed; the service takes no calls until it is restarted")
        try:
            async with asyncio.timeout(self.timeout_s):
                return await self._questions.ask(script, [self.prefix + key for key in keys], args)
        except LOST as error:
            _log.warning("what workers count together cannot be asked: %s", type(error).__name__)
            raise Unavailable(
                f"what all workers have spent is not known: the store did not answer within {self.timeout_s:g} s"
            ) from None

    def soon(self, script: str, keys: Sequence[str], args: Sequence[str | int | float]) -> None:
        """Run it without waiting, for what may be lost."""
        if self._store.healthy:
            with suppress(QuestionsFull):
                self._questions.tell(script, [self.prefix + key for key in keys], args)

    async def close(self) -> None:
        """Let what was begun end."""
        await self._questions.close()
