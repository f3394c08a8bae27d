#!lua
-- Take a profile cell: whoever held it is fenced from now on.
-- KEYS  meta   ARGV  token, generation to use if the cell has none
-- Reply {OK, generation, next offset or nil, {counter, value, ...}, attempts at this offset, {mark, offset, ...}, sketch}
local meta, token, generation = KEYS[1], ARGV[1], ARGV[2]
local cell = string.sub(meta, 1, -5)
if #ARGV ~= 2 or token == '' or generation == '' then return redis.error_reply('BADARGS claim') end

redis.call('HSETNX', meta, 'gen', generation)
redis.call('HSET', meta, 'tok', token)
local attempts = redis.call('HINCRBY', meta, 'tries', 1)

local counters = {}
local all = redis.call('HGETALL', meta)
for i = 1, #all, 2 do
  if string.sub(all[i], 1, 2) == 'n:' then
    counters[#counters + 1] = string.sub(all[i], 3)
    counters[#counters + 1] = all[i + 1]
  end
end
return {
  'OK', redis.call('HGET', meta, 'gen'), redis.call('HGET', meta, 'off'), counters, attempts,
  redis.call('HGETALL', cell .. 'erased'), redis.call('GET', cell .. 'sketch') or '',
}
