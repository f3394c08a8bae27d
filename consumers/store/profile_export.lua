#!lua flags=no-writes
-- Everything of a profile cell but the profiles, and whose there are.
-- KEYS  meta   ARGV  number of decision cells
-- Reply {OK, token or nil, {field of meta, value, ...}, sketch, {mark, offset, ...}, {dead letter...},
--        {arrival...}, {client, offset of its last change, ...} for each decision cell}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local reply = {
  'OK', redis.call('HGET', meta, 'tok'), redis.call('HGETALL', meta), redis.call('GET', cell .. 'sketch') or '',
  redis.call('HGETALL', cell .. 'erased'), redis.call('XRANGE', cell .. 'dead', '-', '+'),
  redis.call('XRANGE', cell .. 'arrivals', '-', '+'),
}
for v = 0, tonumber(ARGV[1]) - 1 do
  reply[#reply + 1] = redis.call('ZRANGE', cell .. 'touched:' .. v, 0, -1, 'WITHSCORES')
end
return reply
