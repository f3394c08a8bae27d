#!lua
-- Write one ingest step: profiles, touched lists, dead letters, counters, sketch, and the offset last.
-- Everything is checked before the first write: a script is atomic, but what it did before an error stays done.
-- KEYS  meta
-- ARGV  token, expected offset or '', next offset, longest profile ttl in s, profiles, dead, counters, sketches (four counts,
--       the last 0 or 1), of a join cell: number of the last arrival that was read or '', its proof; count of arrivals done with, then
--       their numbers
--       each profile: client, decision cell, ttl in s, fields to set, fields to delete (counts), set name, value..., deleted name...
--       each dead letter: place, offset, reason, detail, sha256, head    each counter: name, value
--       the sketch
-- Reply {FENCED} | {CAS, offset or nil} | {OK}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local token, expected, next_offset, ttl_s = ARGV[1], ARGV[2], ARGV[3], ARGV[4]

local function count(text) return text and string.match(text, '^%d+$') and tonumber(text) end
local function holds(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end
-- Lua can pass some 8,000 arguments to one call.
local STEP = 4000
local function call_in_steps(command, key, list, from, to)
  for i = from, to, STEP do redis.call(command, key, unpack(list, i, math.min(i + STEP - 1, to))) end
end

local n_profiles, n_dead, n_counters, n_sketches = count(ARGV[5]), count(ARGV[6]), count(ARGV[7]), count(ARGV[8])
local arrived, proof, n_done = ARGV[9], ARGV[10], count(ARGV[11])
if not (count(next_offset) and count(ttl_s) and n_profiles and n_dead and n_counters and n_sketches and n_done) then
  return redis.error_reply('BADARGS commit: header')
end
if not ((arrived == '' or count(arrived)) and #ARGV >= 11 + n_done) then return redis.error_reply('BADARGS commit: arrivals') end
for i = 12, 11 + n_done do
  if not count(ARGV[i]) then return redis.error_reply('BADARGS commit: done') end
end

if redis.call('HGET', meta, 'tok') ~= token then return {'FENCED'} end
local offset = redis.call('HGET', meta, 'off')
if (offset or '') ~= expected then return {'CAS', offset} end
local read_bytes
if arrived ~= '' then  -- what was folded must be what is here: the store may have lost it since
  local id = arrived .. '-1'
  local there = redis.call('XRANGE', cell .. 'arrivals', id, id)[1]
  if not there or there[2][2] ~= proof then return {'CAS', offset} end
  read_bytes = there[2][4]
end

local last = #ARGV - n_sketches
local at = 12 + n_done
local touched = {}
for _ = 1, n_profiles do
  local client, v, own_ttl_s = ARGV[at], count(ARGV[at + 1]), count(ARGV[at + 2])
  local sets, drops = count(ARGV[at + 3]), count(ARGV[at + 4])
  if not (client and v and own_ttl_s and sets and drops) then return redis.error_reply('BADARGS commit: profile') end
  if not holds(cell .. 'p:' .. client, 'hash') then return redis.error_reply('WRONGTYPE profile') end
  if not touched[v] then
    if not holds(cell .. 'touched:' .. v, 'zset') then return redis.error_reply('WRONGTYPE touched') end
    touched[v] = {}
  end
  local list = touched[v]
  list[#list + 1] = next_offset
  list[#list + 1] = client
  at = at + 5 + 2 * sets + drops
  if at > last + 1 then return redis.error_reply('BADARGS commit: too short') end
end
local dead_at, counters_at = at, at + 6 * n_dead
if counters_at + 2 * n_counters ~= last + 1 then return redis.error_reply('BADARGS commit: length') end
for i = counters_at, last, 2 do
  if not count(ARGV[i + 1]) then return redis.error_reply('BADARGS commit: counter') end
end
if not (holds(cell .. 'dead', 'stream') and holds(cell .. 'ages', 'zset') and holds(cell .. 'sketch', 'string')) then
  return redis.error_reply('WRONGTYPE dead, ages or sketch')
end

-- From here on only writes.
for i = 12, 11 + n_done do redis.call('XDEL', cell .. 'arrivals', ARGV[i] .. '-1') end
if read_bytes then redis.call('HSET', meta, 'taken', string.format('%.0f', tonumber(arrived) + 1), 'taken_bytes', read_bytes) end
at = 12 + n_done
for _ = 1, n_profiles do
  local key, sets, drops = cell .. 'p:' .. ARGV[at], tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local drops_at = at + 5 + 2 * sets
  call_in_steps('HSET', key, ARGV, at + 5, drops_at - 1)
  call_in_steps('HDEL', key, ARGV, drops_at, drops_at + drops - 1)
  redis.call('EXPIRE', key, ARGV[at + 2])
  at = drops_at + drops
end

-- A touched entry lives as long as the longest profile. Offsets have no date, so the first offset of each day is remembered.
local clock = redis.pcall('TIME')
if not clock.err then
  local day = math.floor(tonumber(clock[1]) / 86400)
  if redis.call('HGET', meta, 'day') ~= tostring(day) then
    local expired = day - math.ceil(tonumber(ttl_s) / 86400) - 1
    redis.call('ZADD', cell .. 'ages', day, next_offset)
    local bound = redis.call('ZREVRANGEBYSCORE', cell .. 'ages', expired, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if bound[1] then
      redis.call('ZREMRANGEBYSCORE', cell .. 'ages', '-inf', '(' .. bound[2])
      redis.call('HSET', meta, 'old', bound[1])
    end
    redis.call('HSET', meta, 'day', day)
  end
end
local old = redis.call('HGET', meta, 'old')
for v, list in pairs(touched) do
  local key = cell .. 'touched:' .. v
  call_in_steps('ZADD', key, list, 1, #list)
  if old then
    local gone = redis.call('ZRANGEBYSCORE', key, '-inf', '(' .. old, 'LIMIT', 0, 100 + #list)
    call_in_steps('ZREM', key, gone, 1, #gone)
  end
end

for i = dead_at, counters_at - 1, 6 do
  redis.call('XADD', cell .. 'dead', '*', 'place', ARGV[i], 'offset', ARGV[i + 1], 'reason', ARGV[i + 2],
    'detail', ARGV[i + 3], 'sha256', ARGV[i + 4], 'head', ARGV[i + 5])
  redis.call('HINCRBY', meta, 'd:' .. ARGV[i + 2], 1)
end
for i = counters_at, last, 2 do redis.call('HSET', meta, 'n:' .. ARGV[i], ARGV[i + 1]) end
if n_sketches == 1 then redis.call('SET', cell .. 'sketch', ARGV[#ARGV]) end
if next_offset ~= expected then redis.call('HDEL', meta, 'tries') end
redis.call('HSET', meta, 'off', next_offset)
return {'OK'}
