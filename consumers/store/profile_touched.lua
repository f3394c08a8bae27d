#!lua flags=no-writes
-- Which clients changed after a cursor, for several decision cells. A commit (one score) is never cut.
-- KEYS  meta   ARGV  limit, then decision cell and cursor, again and again
-- Reply {OK, generation or nil, offset or nil, {decision cell, cursor, {client...}}...}
local meta = KEYS[1]
local prefix = string.sub(meta, 1, -5) .. 'touched:'
local limit = tonumber(ARGV[1])
if not limit or limit < 1 or #ARGV % 2 ~= 1 then return redis.error_reply('BADARGS touched') end
local offset = redis.call('HGET', meta, 'off')
local reply = {'OK', redis.call('HGET', meta, 'gen'), offset}

for i = 2, #ARGV, 2 do
  local key, after = prefix .. ARGV[i], '(' .. ARGV[i + 1]
  local found = redis.call('ZRANGEBYSCORE', key, after, '+inf', 'WITHSCORES', 'LIMIT', 0, limit + 1)
  local clients, cursor = {}, offset or '0'
  if #found <= 2 * limit then
    for j = 1, #found, 2 do clients[#clients + 1] = found[j] end
  elseif found[2] == found[#found] then
    -- The oldest commit alone exceeds the limit: give it whole, or the reader would never get past it.
    clients = redis.call('ZRANGEBYSCORE', key, found[2], found[2])
    if redis.call('ZCOUNT', key, '(' .. found[2], '+inf') > 0 then cursor = found[2] end
  else
    -- The commit at the cut may be incomplete: leave it for the next call.
    for j = 1, #found, 2 do
      if found[j + 1] == found[#found] then break end
      clients[#clients + 1] = found[j]
      cursor = found[j + 1]
    end
  end
  reply[#reply + 1] = {ARGV[i], cursor, clients}
end
return reply
