#!lua flags=no-writes
-- Read profiles as anybody, together with the generation and offset that they reflect.
-- KEYS  meta   ARGV  client...
-- Reply {OK, generation or nil, offset or nil, {field, value, ...} for each client}
local meta = KEYS[1]
local profile = string.sub(meta, 1, -5) .. 'p:'
local found = {'OK', redis.call('HGET', meta, 'gen'), redis.call('HGET', meta, 'off')}
for i = 1, #ARGV do found[i + 3] = redis.call('HGETALL', profile .. ARGV[i]) end
return found
