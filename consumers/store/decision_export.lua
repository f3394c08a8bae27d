#!lua flags=no-writes
-- Everything of a decision cell but the rows, and whose there are.
-- KEYS  meta
-- Reply {OK, revision, {client...}, {alert...}, {destination, {uid, stored at ms, ...}}...}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local clients = {}
for _, model in ipairs(redis.call('SMEMBERS', cell .. 'models')) do
  for _, client in ipairs(redis.call('ZRANGE', cell .. 'rank:' .. model, 0, -1)) do clients[#clients + 1] = client end
end
local reply = {
  'OK', redis.call('HGET', meta, 'rev') or '0', clients, redis.call('XRANGE', cell .. 'outbox', '-', '+'),
}
for _, destination in ipairs(redis.call('SMEMBERS', cell .. 'destinations')) do
  reply[#reply + 1] = {destination, redis.call('ZRANGE', cell .. 'sent:' .. destination, 0, -1, 'WITHSCORES')}
end
return reply
