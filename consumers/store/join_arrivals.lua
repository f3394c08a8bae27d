#!lua flags=no-writes
-- What arrived in a join cell from a number on, and how far each source was handed in.
-- KEYS  meta   ARGV  first number, limit
-- Reply {OK, number of the next arrival or nil, {source, offset, ...}, {arrival...}}
local meta = KEYS[1]
local limit = tonumber(ARGV[2])
if not (limit and string.match(ARGV[1], '^%d+$')) then return redis.error_reply('BADARGS arrivals') end
local sources = {}
if limit == 0 then
  local all = redis.call('HGETALL', meta)
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 7) == 'source:' then
      sources[#sources + 1] = string.sub(all[i], 8)
      sources[#sources + 1] = all[i + 1]
    end
  end
end
local found = {}
if limit > 0 then found = redis.call('XRANGE', string.sub(meta, 1, -5) .. 'arrivals', ARGV[1] .. '-0', '+', 'COUNT', limit) end
return {'OK', redis.call('HGET', meta, 'numbered'), sources, found}
