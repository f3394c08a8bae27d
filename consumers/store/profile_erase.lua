#!lua
-- Drop clients for good, remember up to where they were read (before a reset, too: mark ''), fence the owner.
-- KEYS  meta   ARGV  new token, then each client: client, decision cell, mark
-- Reply {OK}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
if #ARGV % 3 ~= 1 or ARGV[1] == '' then return redis.error_reply('BADARGS erase') end
if redis.call('HEXISTS', meta, 'gen') == 0 then return {'OK'} end
local offset = tonumber(redis.call('HGET', meta, 'off') or '-1')
offset = math.max(offset, tonumber(redis.call('HGET', cell .. 'erased', '') or '-1'))

for i = 2, #ARGV, 3 do
  redis.call('DEL', cell .. 'p:' .. ARGV[i])
  redis.call('ZREM', cell .. 'touched:' .. ARGV[i + 1], ARGV[i])
  local below = tonumber(redis.call('HGET', cell .. 'erased', ARGV[i + 2]) or '-1')
  if offset > below then redis.call('HSET', cell .. 'erased', ARGV[i + 2], string.format('%.0f', offset)) end
end
redis.call('HSET', meta, 'tok', ARGV[1])
return {'OK'}
