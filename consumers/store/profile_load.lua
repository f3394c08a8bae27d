#!lua flags=no-writes
-- Read profiles as the owner of the cell, at the offset that the owner believes in.
-- KEYS  meta   ARGV  token, offset or '', client...
-- Reply {FENCED} | {CAS, offset or nil} | {OK, {field, value, ...} for each client}
local meta = KEYS[1]
local profile = string.sub(meta, 1, -5) .. 'p:'
if redis.call('HGET', meta, 'tok') ~= ARGV[1] then return {'FENCED'} end
local offset = redis.call('HGET', meta, 'off')
if (offset or '') ~= ARGV[2] then return {'CAS', offset} end

local found = {'OK'}
for i = 3, #ARGV do found[i - 1] = redis.call('HGETALL', profile .. ARGV[i]) end
return found
