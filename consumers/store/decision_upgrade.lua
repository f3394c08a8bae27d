#!lua
-- Schema 1 to 2: rows expire, and those that restrict are in `blocks`. Doing it twice changes nothing.
-- KEYS  meta   ARGV  row ttl in s
-- Reply {OK}
local cell = string.sub(KEYS[1], 1, -5)
if not tonumber(ARGV[1]) then return redis.error_reply('BADARGS upgrade') end
for _, model in ipairs(redis.call('SMEMBERS', cell .. 'models')) do
  for _, client in ipairs(redis.call('ZRANGE', cell .. 'rank:' .. model, 0, -1)) do
    local key = cell .. 'c:' .. client
    redis.call('EXPIRE', key, ARGV[1], 'NX')
    local state, until_s = unpack(redis.call('HMGET', key, 'state', 'until_s'))
    if state == 'throttle' or state == 'block' then
      redis.call('ZADD', cell .. 'blocks', until_s == '0' and '+inf' or until_s, client)
    end
  end
end
return {'OK'}
