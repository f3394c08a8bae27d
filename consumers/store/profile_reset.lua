#!lua
-- Begin a cell anew: no profiles, another generation, the given offset. Tombstones and unshipped dead letters stay, and how far
-- the cell was read (mark '').
-- KEYS  meta   ARGV  new token, new generation, offset or '', number of decision cells
-- Reply {OK}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local token, generation, offset, decision_cells = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if #ARGV ~= 4 or token == '' or generation == '' or not decision_cells or not string.match(offset, '^%d*$') then
  return redis.error_reply('BADARGS reset')
end
if redis.call('HEXISTS', meta, 'gen') == 0 then return {'OK'} end

for v = 0, decision_cells - 1 do
  for _, client in ipairs(redis.call('ZRANGE', cell .. 'touched:' .. v, 0, -1)) do
    redis.call('UNLINK', cell .. 'p:' .. client)
  end
  redis.call('UNLINK', cell .. 'touched:' .. v)
end
local before = tonumber(redis.call('HGET', meta, 'off') or '-1')
if before > tonumber(redis.call('HGET', cell .. 'erased', '') or '-1') then
  redis.call('HSET', cell .. 'erased', '', string.format('%.0f', before))
end
redis.call('DEL', cell .. 'ages', cell .. 'sketch', meta)
redis.call('HSET', meta, 'tok', token, 'gen', generation)
if offset ~= '' then redis.call('HSET', meta, 'off', offset) end
return {'OK'}
