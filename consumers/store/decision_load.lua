#!lua flags=no-writes
-- Read decision rows as the owner of the cell, at the revision that the owner believes in.
-- KEYS  meta   ARGV  token, revision, client...
-- Reply {FENCED} | {CAS, revision} | {OK, {row, state, rank, until_s, enforced} for each client, all nil if there is none}
local meta = KEYS[1]
local row = string.sub(meta, 1, -5) .. 'c:'
if redis.call('HGET', meta, 'tok') ~= ARGV[1] then return {'FENCED'} end
local revision = redis.call('HGET', meta, 'rev') or '0'
if revision ~= ARGV[2] then return {'CAS', revision} end

local found = {'OK'}
for i = 3, #ARGV do
  found[i - 1] = redis.call('HMGET', row .. ARGV[i], 'row', 'state', 'rank', 'until_s', 'enforced')
end
return found
