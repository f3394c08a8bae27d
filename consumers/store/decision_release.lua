#!lua
-- Give up the lease on a decision cell, if it is ours.
-- KEYS  meta   ARGV  process
-- Reply {OK}
local lease = string.sub(KEYS[1], 1, -5) .. 'lease'
if redis.call('GET', lease) == ARGV[1] then redis.call('DEL', lease) end
return {'OK'}
