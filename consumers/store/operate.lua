#!lua
-- One change of the operator cell: entries, its audit rows, and the revision last. All arguments are checked first.
-- KEYS  meta
-- ARGV  revision, step to the next, now in s, kept changes, puts, drops, audit rows (three counts), then
--       each put: tenant, kind, key, value, expiry in s    each drop: tenant, kind, key    each audit row
-- Reply {CAS, revision} | {OK, new revision}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local function count(text) return text and string.match(text, '^%d+$') and tonumber(text) end
local revision, step, now_s, kept = count(ARGV[1]), count(ARGV[2]), count(ARGV[3]), count(ARGV[4])
local n_puts, n_drops, n_audit = count(ARGV[5]), count(ARGV[6]), count(ARGV[7])
if not (revision and step and step > 0 and now_s and kept and n_puts and n_drops and n_audit) then
  return redis.error_reply('BADARGS operate: header')
end
local stored = redis.call('HGET', meta, 'rev') or '0'
if stored ~= ARGV[1] then return {'CAS', stored} end
local drops_at = 8 + 5 * n_puts
local audit_at = drops_at + 3 * n_drops
if audit_at + n_audit ~= #ARGV + 1 then return redis.error_reply('BADARGS operate: length') end
for i = 8, drops_at - 1, 5 do
  if not count(ARGV[i + 4]) or ARGV[i + 3] == '' then return redis.error_reply('BADARGS operate: entry') end
end

-- From here on only writes.
local after, number = string.format('%.0f', revision + step), 0
local function change(tenant, kind, key, value, expires_s)
  redis.call('XADD', cell .. 'changes', after .. '-' .. number, 'tenant', tenant, 'kind', kind, 'key', key,
    'value', value, 'expires_s', expires_s)
  number = number + 1
end
local function drop(tenant, kind, key)
  redis.call('HDEL', cell .. 'entries:' .. kind, tenant .. ':' .. key)
  redis.call('ZREM', cell .. 'expiring', tenant .. ':' .. kind .. ':' .. key)
end

for _, name in ipairs(redis.call('ZRANGEBYSCORE', cell .. 'expiring', '-inf', now_s)) do
  drop(string.match(name, '^(.-):(.-):(.*)$'))
end
for i = drops_at, audit_at - 1, 3 do drop(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
for i = 8, drops_at - 1, 5 do
  local tenant, kind, key, value, expires_s = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4]
  drop(tenant, kind, key)
  redis.call('HSET', cell .. 'entries:' .. kind, tenant .. ':' .. key, expires_s .. ':' .. value)
  redis.call('SADD', cell .. 'kinds', kind)
  if expires_s ~= '0' then redis.call('ZADD', cell .. 'expiring', expires_s, tenant .. ':' .. kind .. ':' .. key) end
  change(tenant, kind, key, value, expires_s)
end
for i = drops_at, audit_at - 1, 3 do change(ARGV[i], ARGV[i + 1], ARGV[i + 2], '', '0') end

local rows = tonumber(redis.call('HGET', meta, 'rows') or '0')
for i = audit_at, #ARGV do
  rows = rows + 1
  redis.call('XADD', cell .. 'audit', string.format('%.0f-0', rows), 'row', ARGV[i])
end
redis.call('HSET', meta, 'rows', string.format('%.0f', rows))

-- Old changes go, never a part of a revision.
if redis.call('XTRIM', cell .. 'changes', 'MAXLEN', kept) > 0 then
  local first = redis.call('XRANGE', cell .. 'changes', '-', '+', 'COUNT', 1)[1]
  local gone = revision + step
  if first then
    local oldest, part = string.match(first[1], '^(%d+)-(%d+)$')
    gone = part == '0' and tonumber(oldest) - 1 or tonumber(oldest)
    redis.call('XTRIM', cell .. 'changes', 'MINID', string.format('%.0f-0', gone + 1))
  end
  redis.call('HSET', meta, 'gone', string.format('%.0f', gone))
end
redis.call('ZADD', cell .. 'revisions', after, after)
redis.call('ZREMRANGEBYRANK', cell .. 'revisions', 0, -(kept + 2))
redis.call('HSET', meta, 'rev', after)
return {'OK', after}
