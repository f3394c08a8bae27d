#!lua
-- Take a profile cell: whoever held it is fenced from now on.
-- A process that claims again lives: it does not count as an attempt. One that came through the fold of what is next clears them.
-- KEYS  meta   ARGV  token, generation to use if the cell has none or is a join cell, proof: none, alive or folded
-- Reply {OK, generation, next offset or nil, {counter, value, ...}, attempts at this offset, {mark, offset, ...}, sketch}
local meta, token, generation, proof = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local cell = string.sub(meta, 1, -5)
local known = proof == 'none' or proof == 'alive' or proof == 'folded'
if #ARGV ~= 3 or token == '' or generation == '' or not known then return redis.error_reply('BADARGS claim') end

-- In a join cell the same position may reflect other arrivals in another history.
if redis.call('HEXISTS', meta, 'numbered') == 1 then
  redis.call('HSET', meta, 'gen', generation)
else
  redis.call('HSETNX', meta, 'gen', generation)
end
redis.call('HSET', meta, 'tok', token)
if proof == 'none' then
  redis.call('HINCRBY', meta, 'tries', 1)
elseif proof == 'folded' then
  redis.call('HDEL', meta, 'tries')
end
local attempts = tonumber(redis.call('HGET', meta, 'tries') or '0')

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
