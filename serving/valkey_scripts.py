"""The shared log's layout on a Valkey server, and the scripts that alone write it: each is one atomic step.

All keys begin with `{name}:`, in braces so that they would share one slot.

    log              hash: version of this layout, id of this log (another after the server lost it), position
    events           stream: id `<seq>-0`; fields k(ind's letter) d(ecision) t(s) w(riter:call) p(ayload), in this order
    of:<decision>    list of its events: the kind's letter and the seq
    outcomes         sorted set by ts: the seqs of outcomes, padded, so that those of one time come by seq
    snapshots        hash: seq → payload, the newest two
    batch:<writer>   hash: number of the last batch taken from it, and what was answered
    count:<counter>  hash: part → whole number
    alive:<writer>, lease:<role>   expire by themselves

This file knows nothing of connections, and no script looks into a payload.
"""

from __future__ import annotations

from typing import Final, get_args

from serving.store import Kind

__all__ = ["COMMIT", "FIND", "LAYOUT_VERSION", "LEASE", "LEAVE", "LETTERS", "LOST", "OPEN", "SNAPSHOT", "WITHOUT"]

LAYOUT_VERSION = 1
LETTERS: Final[dict[Kind, bytes]] = {
    "decision": b"d",
    "outcome": b"o",
    "feedback": b"f",
    "filter_event": b"e",
    "benchmark_result": b"b",
    "model_added": b"a",
    "model_removed": b"r",
    "change": b"c",
}
assert set(LETTERS) == set(get_args(Kind))  # noqa: S101 - a kind without a letter could not be stored
LOST = "LOST"  # how COMMIT's error begins when this is not the log that was opened, or an older state of it

# `#!lua`: the server refuses the whole script when it is out of memory, rather than one of its writes.
_HEAD = """#!lua
local log = KEYS[1]
local prefix = string.sub(log, 1, -4)
local events, outcomes = prefix .. 'events', prefix .. 'outcomes'
local function text(number) return string.format('%.0f', number) end
local function padded(seq) return string.format('%016.0f', seq) end
"""

# ARGV: version, id for a new log. Returns version, id, position.
OPEN = (
    _HEAD
    + """
if redis.call('EXISTS', log) == 0 then
  redis.call('HSET', log, 'version', ARGV[1], 'id', ARGV[2], 'position', '0')
end
return redis.call('HMGET', log, 'version', 'id', 'position')
"""
)

# ARGV: id of the log, position known, writer, number of the batch; then operations:
#   e call events, and for each: letter decision ts payload nth     c counter part amount expires_at
#   s seq payload     m topic message     r before_ts up_to_seq limit
# Returns "position|refused calls|events deleted by each r". A batch that was seen is answered as it was then.
COMMIT = (
    _HEAD
    + f"""
local head = redis.call('HMGET', log, 'id', 'position')
local position = tonumber(head[2] or '0')
if head[1] ~= ARGV[1] or position < tonumber(ARGV[2]) then
  return redis.error_reply('{LOST} the server lost events: it is at ' .. text(position) .. ', and '
    .. ARGV[2] .. ' were acknowledged')
end
local writer, batch = ARGV[3], prefix .. 'batch:' .. ARGV[3]
local seen = redis.call('HMGET', batch, 'number', 'answer')
if seen[1] and tonumber(seen[1]) >= tonumber(ARGV[4]) then return seen[2] end

local function stored(letter, decision)
  local count = 0
  for _, entry in ipairs(redis.call('LRANGE', prefix .. 'of:' .. decision, 0, -1)) do
    if string.sub(entry, 1, 1) == letter then count = count + 1 end
  end
  return count
end

local function in_place(first, last)
  local before = {{}}
  for i = first, last, 5 do
    local name, nth = ARGV[i] .. ARGV[i + 1], ARGV[i + 4]
    if nth ~= '' and stored(ARGV[i], ARGV[i + 1]) + (before[name] or 0) ~= tonumber(nth) then return false end
    before[name] = (before[name] or 0) + 1
  end
  return true
end

local function take(i, call)
  position = position + 1
  local seq = text(position)
  redis.call('XADD', events, seq .. '-0', 'k', ARGV[i], 'd', ARGV[i + 1], 't', ARGV[i + 2],
    'w', writer .. ':' .. call, 'p', ARGV[i + 3])
  if ARGV[i + 1] ~= '' then redis.call('RPUSH', prefix .. 'of:' .. ARGV[i + 1], ARGV[i] .. seq) end
  if ARGV[i] == 'o' then redis.call('ZADD', outcomes, ARGV[i + 2], padded(position)) end
end

local function count(counter, part, amount, expires_at)
  local key = prefix .. 'count:' .. counter
  local added = redis.pcall('HINCRBY', key, part, amount)
  if type(added) == 'table' then redis.call('HSET', key, part, '9223372036854775807') end -- past 64 bits
  redis.call('EXPIREAT', key, expires_at)
end

local function save(seq, payload)
  local key = prefix .. 'snapshots'
  redis.call('HSET', key, seq, payload)
  local seqs = redis.call('HKEYS', key)
  table.sort(seqs, function(a, b) return tonumber(a) > tonumber(b) end)
  for i = 3, #seqs do redis.call('HDEL', key, seqs[i]) end
end

local function prune(before_ts, up_to_seq, limit)
  local deleted = 0
  for _, entry in ipairs(redis.call('XRANGE', events, '-', up_to_seq, 'COUNT', limit)) do
    local id, fields = entry[1], entry[2]
    local letter, decision, seq = fields[2], fields[4], string.sub(id, 1, -3)
    if tonumber(fields[6]) < tonumber(before_ts) then
      redis.call('XDEL', events, id)
      if decision ~= '' then redis.call('LREM', prefix .. 'of:' .. decision, 1, letter .. seq) end
      if letter == 'o' then redis.call('ZREM', outcomes, padded(tonumber(seq))) end
      deleted = deleted + 1
    end
  end
  return deleted
end

local i, refused, was_refused, deleted = 5, {{}}, {{}}, {{}}
while i <= #ARGV do
  local step = ARGV[i]
  if step == 'e' then
    local call, first = ARGV[i + 1], i + 3
    local last = first + 5 * tonumber(ARGV[i + 2]) - 1
    if in_place(first, last) then
      for j = first, last, 5 do take(j, call) end
    else
      refused[#refused + 1] = call
      was_refused[call] = true
    end
    i = last + 1
  elseif step == 'c' then
    if not was_refused[ARGV[i + 5]] then count(ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]) end
    i = i + 6
  elseif step == 's' then
    save(ARGV[i + 1], ARGV[i + 2])
    i = i + 3
  elseif step == 'm' then
    redis.call('PUBLISH', prefix .. 'topic:' .. ARGV[i + 1], ARGV[i + 2])
    i = i + 3
  else
    deleted[#deleted + 1] = prune(ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
    i = i + 4
  end
end
redis.call('HSET', log, 'position', text(position))
local answer = text(position) .. '|' .. table.concat(refused, ',') .. '|' .. table.concat(deleted, ',')
redis.call('HSET', batch, 'number', ARGV[4], 'answer', answer)
redis.call('EXPIRE', batch, 86400)
return answer
"""
)

# ARGV: decision. Returns its events as XRANGE does.
FIND = (
    _HEAD
    + """
local found = {}
for _, entry in ipairs(redis.call('LRANGE', prefix .. 'of:' .. ARGV[1], 0, -1)) do
  local seq = string.sub(entry, 2)
  for _, event in ipairs(redis.call('XRANGE', events, seq, seq)) do found[#found + 1] = event end
end
return found
"""
)

# Returns seq and payload of the newest, or nothing.
SNAPSHOT = (
    _HEAD
    + """
local newest = nil
for _, seq in ipairs(redis.call('HKEYS', prefix .. 'snapshots')) do
  if newest == nil or tonumber(seq) > tonumber(newest) then newest = seq end
end
if newest == nil then return {} end
return {newest, redis.call('HGET', prefix .. 'snapshots', newest)}
"""
)

# ARGV: ts and seq behind which to look, ts up to which, limit. Returns ts and seq of the last outcome looked at ("" for
# none), then the decisions without feedback. An outcome's rank is known unless it was pruned, or never was.
WITHOUT = (
    _HEAD
    + """
local after, seq = ARGV[1], padded(tonumber(ARGV[2]))
local from = redis.call('ZCOUNT', outcomes, '-inf', '(' .. after)
local rank = redis.call('ZRANK', outcomes, seq)
if rank and rank >= from then
  from = rank + 1
else
  local walking = true
  while walking do
    local page = redis.call('ZRANGE', outcomes, from, from + 99, 'WITHSCORES')
    walking = #page == 200
    for i = 1, #page, 2 do
      if tonumber(page[i + 1]) > tonumber(after) or page[i] > seq then walking = false break end
      from = from + 1
    end
  end
end

local function graded(decision)
  for _, entry in ipairs(redis.call('LRANGE', prefix .. 'of:' .. decision, 0, -1)) do
    if string.sub(entry, 1, 1) == 'f' then return true end
  end
  return false
end

local found = {'', ''}
local page = redis.call('ZRANGE', outcomes, from, from + tonumber(ARGV[4]) - 1, 'WITHSCORES')
for i = 1, #page, 2 do
  if tonumber(page[i + 1]) > tonumber(ARGV[3]) then break end
  local id = text(tonumber(page[i]))
  local decision = redis.call('XRANGE', events, id, id)[1][2][4]
  if not graded(decision) then found[#found + 1] = decision end
  found[1], found[2] = page[i + 1], id
end
return found
"""
)

# ARGV: role, writer, milliseconds. Returns 1 for the holder.
LEASE = (
    _HEAD
    + """
local key = prefix .. 'lease:' .. ARGV[1]
local holder = redis.call('GET', key)
if holder and holder ~= ARGV[2] then return 0 end
redis.call('SET', key, ARGV[2], 'PX', ARGV[3])
return 1
"""
)

# ARGV: writer, roles it may hold.
LEAVE = (
    _HEAD
    + """
redis.call('DEL', prefix .. 'alive:' .. ARGV[1])
for i = 2, #ARGV do
  local key = prefix .. 'lease:' .. ARGV[i]
  if redis.call('GET', key) == ARGV[1] then redis.call('DEL', key) end
end
return 1
"""
)
