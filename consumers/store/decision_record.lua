#!lua
-- Write one detect step: rows, rank, blocks, the feed of gateways, alerts, cursors, the lease, and the revision last.
-- All arguments are checked first.
-- KEYS  meta
-- ARGV  token, revision, process, lease in ms, alert ttl in ms, row ttl in s, feed entries, cursors, rows, alerts (three
--       counts), then
--       each cursor: profile cell, generation:offset    each row: client, tenant:model, row, state, rank, until_s,
--       enforced    each alert: uid, time in ms, body
-- Reply {FENCED} | {CAS, revision} | {OK, new revision}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local token, revision, process, lease_ms, alert_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local function count(text) return text and string.match(text, '^%d+$') and tonumber(text) end
local function holds(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

local ttl_s, feed_entries = count(ARGV[6]), count(ARGV[7])
local n_cursors, n_rows, n_alerts = count(ARGV[8]), count(ARGV[9]), count(ARGV[10])
local bounds = count(revision) and (count(lease_ms) or 0) > 0 and count(alert_ttl_ms) and ttl_s and feed_entries
if not (bounds and n_cursors and n_rows and n_alerts) then
  return redis.error_reply('BADARGS record: header')
end

if redis.call('HGET', meta, 'tok') ~= token then return {'FENCED'} end
local stored = redis.call('HGET', meta, 'rev') or '0'
if stored ~= revision then return {'CAS', stored} end

local rows_at = 11 + 2 * n_cursors
local alerts_at = rows_at + 7 * n_rows
if alerts_at + 3 * n_alerts ~= #ARGV + 1 then return redis.error_reply('BADARGS record: length') end
for i = rows_at, alerts_at - 1, 7 do
  local rank = tonumber(ARGV[i + 4])
  if not rank or rank ~= rank or not string.match(ARGV[i + 5], '^-?%d+$') then
    return redis.error_reply('BADARGS record: row')
  end
  if not (holds(cell .. 'c:' .. ARGV[i], 'hash') and holds(cell .. 'rank:' .. ARGV[i + 1], 'zset')) then
    return redis.error_reply('WRONGTYPE row or rank')
  end
end
for name, kind in pairs({outbox = 'stream', feed = 'stream', models = 'set', blocks = 'zset', lease = 'string'}) do
  if not holds(cell .. name, kind) then return redis.error_reply('WRONGTYPE ' .. name) end
end

-- From here on only writes.
local models = {}
for i = rows_at, alerts_at - 1, 7 do
  local client, state, until_s, enforced = ARGV[i], ARGV[i + 3], ARGV[i + 5], ARGV[i + 6]
  local key = cell .. 'c:' .. client
  local before = redis.call('HMGET', key, 'state', 'enforced', 'until_s')
  local restricted = state == 'throttle' or state == 'block'
  if state ~= (before[1] or 'clear') or enforced ~= (before[2] or 'clear')
    or restricted and until_s ~= (before[3] or '0') then
    redis.call('XADD', cell .. 'feed', '*', 'client', client, 'state', state, 'enforced', enforced, 'until_s', until_s)
  end
  redis.call('HSET', key, 'row', ARGV[i + 2], 'state', state, 'rank', ARGV[i + 4], 'until_s', until_s,
    'enforced', enforced)
  redis.call('EXPIRE', key, ttl_s)
  redis.call('ZADD', cell .. 'rank:' .. ARGV[i + 1], ARGV[i + 4], client)
  if restricted then
    redis.call('ZADD', cell .. 'blocks', until_s == '0' and '+inf' or until_s, client)
  else
    redis.call('ZREM', cell .. 'blocks', client)
  end
  models[ARGV[i + 1]] = true
end
if redis.call('XTRIM', cell .. 'feed', 'MAXLEN', '~', feed_entries) > 0 then
  -- Readers at a position before this one have missed something.
  redis.call('HSET', meta, 'cut', redis.call('XRANGE', cell .. 'feed', '-', '+', 'COUNT', 1)[1][1])
end
-- Rows expire by themselves; what names them is cleaned up step by step, the faster the more is written.
for model in pairs(models) do
  local rank = cell .. 'rank:' .. model
  redis.call('SADD', cell .. 'models', model)
  local from = redis.call('HGET', meta, 'sweep:' .. model) or '0'
  local page = redis.call('ZSCAN', rank, from, 'COUNT', 20 + n_rows)
  for i = 1, #page[2], 2 do
    if redis.call('EXISTS', cell .. 'c:' .. page[2][i]) == 0 then
      redis.call('ZREM', rank, page[2][i])
      redis.call('ZREM', cell .. 'blocks', page[2][i])
    end
  end
  redis.call('HSET', meta, 'sweep:' .. model, page[1])
end
for i = alerts_at, #ARGV, 3 do
  redis.call('XADD', cell .. 'outbox', '*', 'uid', ARGV[i], 'time_ms', ARGV[i + 1], 'body', ARGV[i + 2])
end
local clock = redis.pcall('TIME')
if not clock.err then
  local oldest = tonumber(clock[1]) * 1000 - tonumber(alert_ttl_ms)
  redis.call('XTRIM', cell .. 'outbox', 'MINID', string.format('%.0f', math.max(oldest, 0)))
  redis.call('ZREMRANGEBYSCORE', cell .. 'blocks', '-inf', clock[1])
end
for i = 11, rows_at - 1, 2 do redis.call('HSET', meta, 'cur:' .. ARGV[i], ARGV[i + 1]) end
redis.call('SET', cell .. 'lease', process, 'PX', lease_ms)
local after = string.format('%.0f', tonumber(revision) + 1)
redis.call('HSET', meta, 'rev', after)
return {'OK', after}
