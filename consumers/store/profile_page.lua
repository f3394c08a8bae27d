#!lua flags=no-writes
-- Some profiles with their expiry, as they are while neither the owner nor the offset has changed.
-- KEYS  meta   ARGV  token or '', offset or '', client...
-- Reply {FENCED} | {CAS, offset or nil} | {OK, {expiry in s, {field, value, ...}} for each client}
local meta = KEYS[1]
local profile = string.sub(meta, 1, -5) .. 'p:'
if (redis.call('HGET', meta, 'tok') or '') ~= ARGV[1] then return {'FENCED'} end
local offset = redis.call('HGET', meta, 'off')
if (offset or '') ~= ARGV[2] then return {'CAS', offset} end

local found = {'OK'}
for i = 3, #ARGV do
  local key = profile .. ARGV[i]
  found[i - 1] = {redis.call('EXPIRETIME', key), redis.call('HGETALL', key)}
end
return found
