#!lua
-- Drop clients and alerts for good, begin the feed of gateways anew, fence the owner: a revision alone
-- would not do, a failover takes it back and the next change issues it again.
-- KEYS  meta   ARGV  new generation of the feed, clients (count), then each client: client, tenant:model    alert id...
-- Reply {OK}
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local n_clients = tonumber(ARGV[2])
if ARGV[1] == '' or not n_clients or #ARGV < 2 + 2 * n_clients then return redis.error_reply('BADARGS erase') end

for i = 3, 2 + 2 * n_clients, 2 do
  redis.call('DEL', cell .. 'c:' .. ARGV[i])
  redis.call('ZREM', cell .. 'rank:' .. ARGV[i + 1], ARGV[i])
  redis.call('ZREM', cell .. 'blocks', ARGV[i])
end

local unwanted = {}
for i = 3 + 2 * n_clients, #ARGV do unwanted[ARGV[i]] = true end
local destinations = redis.call('SMEMBERS', cell .. 'destinations')
local from = '-'
while next(unwanted) do
  local entries = redis.call('XRANGE', cell .. 'outbox', from, '+', 'COUNT', 1000)
  for _, entry in ipairs(entries) do
    local uid = entry[2][2]
    if unwanted[string.match(uid, '^(.*)/')] then
      redis.call('XDEL', cell .. 'outbox', entry[1])
      for _, destination in ipairs(destinations) do redis.call('ZREM', cell .. 'sent:' .. destination, uid) end
    end
  end
  if #entries < 1000 then break end
  from = '(' .. entries[#entries][1]
end

redis.call('DEL', cell .. 'feed')
redis.call('HDEL', meta, 'cut')
redis.call('HSET', meta, 'feed', ARGV[1])
redis.call('HDEL', meta, 'tok')
redis.call('HINCRBY', meta, 'rev', 1)
return {'OK'}
