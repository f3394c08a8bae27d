#!lua
-- Begin a cell anew: no profiles, nothing that arrived, another generation, the given offset. Tombstones and unshipped dead letters stay, and how far
-- the cell was read (mark ''). A key of a foreign type is what an operator begins the cell anew for: it goes too.
-- KEYS  meta   ARGV  new token, new generation, offset or '', number of decision cells
-- Reply {OK}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local token, generation, offset, decision_cells = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
if #ARGV ~= 4 or token == '' or generation == '' or not decision_cells or not string.match(offset, '^%d*$') then
  return redis.error_reply('BADARGS reset')
end
local function foreign(key, kind)
  local found = redis.call('TYPE', key).ok
  return found ~= kind and found ~= 'none'
end
for key, kind in pairs({[meta] = 'hash', [cell .. 'erased'] = 'hash', [cell .. 'dead'] = 'stream'}) do
  if foreign(key, kind) then
    redis.call('DEL', key)
    if key == meta then redis.call('HSET', meta, 'gen', '') end
  end
end
if redis.call('HEXISTS', meta, 'gen') == 0 then return {'OK'} end

local unknown = false
for v = 0, decision_cells - 1 do
  local touched = cell .. 'touched:' .. v
  if foreign(touched, 'zset') then
    unknown = true
  else
    for _, client in ipairs(redis.call('ZRANGE', touched, 0, -1)) do redis.call('UNLINK', cell .. 'p:' .. client) end
  end
  redis.call('UNLINK', touched)
end
if unknown then  -- whose profiles there are was lost: look for them
  local at = '0'
  repeat
    local page = redis.call('SCAN', at, 'MATCH', string.gsub(cell, '[%[%]%*%?\\]', '\\%0') .. 'p:*', 'COUNT', 1000)
    at = page[1]
    for _, key in ipairs(page[2]) do redis.call('UNLINK', key) end
  until at == '0'
end
local before = tonumber(redis.call('HGET', meta, 'off') or '-1')
if before > tonumber(redis.call('HGET', cell .. 'erased', '') or '-1') then
  redis.call('HSET', cell .. 'erased', '', string.format('%.0f', before))
end
redis.call('DEL', cell .. 'ages', cell .. 'sketch', cell .. 'arrivals', meta)
redis.call('HSET', meta, 'tok', token, 'gen', generation)
if offset ~= '' then redis.call('HSET', meta, 'off', offset) end
return {'OK'}
