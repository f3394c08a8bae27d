#!lua
-- Remember a delivery. The ledger names what was delivered out of order; the mark is where the first gap begins.
-- KEYS  meta   ARGV  destination, entry, uid
-- Reply {OK}
local cell = string.sub(KEYS[1], 1, -5)
local outbox, ledger, mark = cell .. 'outbox', cell .. 'sent:' .. ARGV[1], cell .. 'mark:' .. ARGV[1]
local stored_ms = #ARGV == 3 and string.match(ARGV[2], '^(%d+)%-%d+$')
if not stored_ms then return redis.error_reply('BADARGS sent') end
local from = redis.call('GET', mark)

redis.call('ZADD', ledger, stored_ms, ARGV[3])
redis.call('SADD', cell .. 'destinations', ARGV[1])
while true do
  local entries = redis.call('XRANGE', outbox, from and '(' .. from or '-', '+', 'COUNT', 100)
  local gap = #entries < 100
  for _, entry in ipairs(entries) do
    if not redis.call('ZSCORE', ledger, entry[2][2]) then
      gap = true
      break
    end
    from = entry[1]
  end
  if gap then break end
end
if from then redis.call('SET', mark, from) end

-- The ledger is kept as long as the alerts: a uid that is issued again is not delivered again.
local oldest = redis.call('XRANGE', outbox, '-', '+', 'COUNT', 1)
if oldest[1] then
  redis.call('ZREMRANGEBYSCORE', ledger, '-inf', '(' .. string.match(oldest[1][1], '^%d+'))
end
return {'OK'}
