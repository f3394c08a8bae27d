#!lua flags=no-writes
-- Alerts of a decision cell that a destination has not got yet, oldest first.
-- KEYS  meta   ARGV  destination, limit
-- Reply {OK, {entry, {field, value, ...}}...}
local cell = string.sub(KEYS[1], 1, -5)
local ledger, limit = cell .. 'sent:' .. ARGV[1], tonumber(ARGV[2])
if #ARGV ~= 2 or not limit then return redis.error_reply('BADARGS outbox') end
local from = redis.call('GET', cell .. 'mark:' .. ARGV[1])
from = from and '(' .. from or '-'

local reply = {'OK'}
while #reply <= limit do
  local entries = redis.call('XRANGE', cell .. 'outbox', from, '+', 'COUNT', 100)
  for _, entry in ipairs(entries) do
    if #reply <= limit and not redis.call('ZSCORE', ledger, entry[2][2]) then reply[#reply + 1] = entry end
  end
  if #entries < 100 then break end
  from = '(' .. entries[#entries][1]
end
return reply
