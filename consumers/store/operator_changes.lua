#!lua flags=no-writes
-- Changes of the operator cell after a revision; the revision that the limit falls into is given whole.
-- KEYS  meta   ARGV  revision, limit
-- Reply {OK, reached, change...} | {OK, nil}: they do not go back that far
local meta = KEYS[1]
local changes = string.sub(meta, 1, -5) .. 'changes'
local after, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
if #ARGV ~= 2 or not after or not limit or limit < 1 then return redis.error_reply('BADARGS changes') end
local revision, gone = unpack(redis.call('HMGET', meta, 'rev', 'gone'))
if after < tonumber(gone or '0') then return {'OK', false} end
-- A revision that is none of ours is of a history that was lost.
local known = after == 0 or after == tonumber(revision or '0')
if not known and not redis.call('ZSCORE', string.sub(meta, 1, -5) .. 'revisions', ARGV[1]) then return {'OK', false} end

local found = redis.call('XRANGE', changes, string.format('%.0f-0', after + 1), '+', 'COUNT', limit)
local reply = {'OK', revision or '0'}
for _, entry in ipairs(found) do reply[#reply + 1] = entry end
if #found == limit then
  reply[2] = string.match(found[limit][1], '^%d+')
  for _, entry in ipairs(redis.call('XRANGE', changes, '(' .. found[limit][1], reply[2])) do
    reply[#reply + 1] = entry
  end
end
return reply
