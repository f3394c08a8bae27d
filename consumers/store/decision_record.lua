#!lua
-- Write one detect step: rows, rank, alerts, cursors, the lease, and the revision last. All arguments are checked first.
-- KEYS  meta
-- ARGV  token, revision, process, lease in ms, alert ttl in ms, cursors, rows, alerts (three counts), then
--       each cursor: profile cell, generation:offset    each row: client, tenant:model, row, state, rank, until_s
--       each alert: uid, time in ms, body
-- Reply {FENCED} | {CAS, revision} | {OK, new revision}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local token, revision, process, lease_ms, alert_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]

local function count(text) return text and string.match(text, '^%d+$') and tonumber(text) end
local function holds(key, kind)
  local found = redis.call('TYPE', key).ok
  return found == kind or found == 'none'
end

local n_cursors, n_rows, n_alerts = count(ARGV[6]), count(ARGV[7]), count(ARGV[8])
if not (count(revision) and (count(lease_ms) or 0) > 0 and count(alert_ttl_ms) and n_cursors and n_rows and n_alerts) then
  return redis.error_reply('BADARGS record: header')
end

if redis.call('HGET', meta, 'tok') ~= token then return {'FENCED'} end
local stored = redis.call('HGET', meta, 'rev') or '0'
if stored ~= revision then return {'CAS', stored} end

local rows_at = 9 + 2 * n_cursors
local alerts_at = rows_at + 6 * n_rows
if alerts_at + 3 * n_alerts ~= #ARGV + 1 then return redis.error_reply('BADARGS record: length') end
for i = rows_at, alerts_at - 1, 6 do
  local rank = tonumber(ARGV[i + 4])
  if not rank or rank ~= rank or not string.match(ARGV[i + 5], '^-?%d+$') then
    return redis.error_reply('BADARGS record: row')
  end
  if not (holds(cell .. 'c:' .. ARGV[i], 'hash') and holds(cell .. 'rank:' .. ARGV[i + 1], 'zset')) then
    return redis.error_reply('WRONGTYPE row or rank')
  end
end
if not (holds(cell .. 'outbox', 'stream') and holds(cell .. 'models', 'set') and holds(cell .. 'lease', 'string')) then
  return redis.error_reply('WRONGTYPE outbox, models or lease')
end

-- From here on only writes.
for i = rows_at, alerts_at - 1, 6 do
  redis.call('HSET', cell .. 'c:' .. ARGV[i], 'row', ARGV[i + 2], 'state', ARGV[i + 3], 'rank', ARGV[i + 4],
    'until_s', ARGV[i + 5])
  redis.call('ZADD', cell .. 'rank:' .. ARGV[i + 1], ARGV[i + 4], ARGV[i])
  redis.call('SADD', cell .. 'models', ARGV[i + 1])
end
for i = alerts_at, #ARGV, 3 do
  redis.call('XADD', cell .. 'outbox', '*', 'uid', ARGV[i], 'time_ms', ARGV[i + 1], 'body', ARGV[i + 2])
end
local clock = redis.pcall('TIME')
if not clock.err then
  local oldest = tonumber(clock[1]) * 1000 - tonumber(alert_ttl_ms)
  redis.call('XTRIM', cell .. 'outbox', 'MINID', string.format('%.0f', math.max(oldest, 0)))
end
for i = 9, rows_at - 1, 2 do redis.call('HSET', meta, 'cur:' .. ARGV[i], ARGV[i + 1]) end
redis.call('SET', cell .. 'lease', process, 'PX', lease_ms)
local after = string.format('%.0f', tonumber(revision) + 1)
redis.call('HSET', meta, 'rev', after)
return {'OK', after}
