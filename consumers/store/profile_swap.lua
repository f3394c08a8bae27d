#!lua
-- Replace fields of profiles that are still as given. Lifetimes, touched lists, offset and owner stay as they are.
-- KEYS  meta   ARGV  each field: client, name, value before, value after
-- Reply {OK, how many were replaced}
local cell = string.sub(KEYS[1], 1, -5)
if #ARGV % 4 ~= 0 then return redis.error_reply('BADARGS swap') end
local done = 0
for i = 1, #ARGV, 4 do
  local key = cell .. 'p:' .. ARGV[i]
  if redis.call('HGET', key, ARGV[i + 1]) == ARGV[i + 2] then
    redis.call('HSET', key, ARGV[i + 1], ARGV[i + 3])
    done = done + 1
  end
end
return {'OK', done}
