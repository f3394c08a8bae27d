#!lua
-- Write the layout of the store, or read the one that is there.
-- KEYS  qw:layout   ARGV  schema version, decision cells, id of the secrets
-- Reply {OK, schema version, decision cells, id of the secrets, '1' while a restore has not finished}
if #ARGV ~= 3 then return redis.error_reply('BADARGS layout') end
if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], 'schema', ARGV[1], 'decision_cells', ARGV[2], 'secrets', ARGV[3])
end
local found = redis.call('HMGET', KEYS[1], 'schema', 'decision_cells', 'secrets', 'restoring')
return {'OK', found[1], found[2], found[3], found[4]}
