#!lua flags=no-writes
-- Some decision rows with their expiry, as they are at a revision.
-- KEYS  meta   ARGV  revision, client...
-- Reply {CAS, revision} | {OK, {expiry in s, row, state, rank, until_s, enforced} for each client}
local meta = KEYS[1]
local row = string.sub(meta, 1, -5) .. 'c:'
local revision = redis.call('HGET', meta, 'rev') or '0'
if revision ~= ARGV[1] then return {'CAS', revision} end

local found = {'OK'}
for i = 2, #ARGV do
  local key = row .. ARGV[i]
  found[i] = {redis.call('EXPIRETIME', key), unpack(redis.call('HMGET', key, 'row', 'state', 'rank', 'until_s', 'enforced'))}
end
return found
