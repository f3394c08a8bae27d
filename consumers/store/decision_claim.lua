#!lua
-- Take a decision cell, unless another process holds a living lease on it.
-- KEYS  meta   ARGV  process, token, lease in ms
-- Reply {HELD, remaining ms} | {OK, revision, {profile cell, generation:offset, ...}}
local meta = KEYS[1]
local lease = string.sub(meta, 1, -5) .. 'lease'
local process, token, lease_ms = ARGV[1], ARGV[2], ARGV[3]
if #ARGV ~= 3 or token == '' or not string.match(lease_ms, '^%d+$') then return redis.error_reply('BADARGS claim') end
local holder = redis.call('GET', lease)
if holder and holder ~= process then return {'HELD', redis.call('PTTL', lease)} end
local all = redis.call('HGETALL', meta)

redis.call('SET', lease, process, 'PX', lease_ms)
redis.call('HSET', meta, 'tok', token)

local revision, cursors = '0', {}
for i = 1, #all, 2 do
  if all[i] == 'rev' then
    revision = all[i + 1]
  elseif string.sub(all[i], 1, 4) == 'cur:' then
    cursors[#cursors + 1] = string.sub(all[i], 5)
    cursors[#cursors + 1] = all[i + 1]
  end
end
return {'OK', revision, cursors}
