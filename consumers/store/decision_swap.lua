#!lua
-- Replace decision rows and bodies of alerts that are still as given. Lifetimes, ranks, feed, revision and owner stay as they are.
-- An entry of a stream cannot be changed: the outbox is written anew with the ids that its entries have.
-- KEYS  meta   ARGV  rows (count), then each row: client, row before, row after    each alert: uid, body before, body after
-- Reply {OK, how many were replaced}
local cell = string.sub(KEYS[1], 1, -5)
local n_rows = tonumber(ARGV[1])
if not n_rows or #ARGV % 3 ~= 1 or #ARGV < 1 + 3 * n_rows then return redis.error_reply('BADARGS swap') end
local done = 0
for i = 2, 1 + 3 * n_rows, 3 do
  local key = cell .. 'c:' .. ARGV[i]
  if redis.call('HGET', key, 'row') == ARGV[i + 1] then
    redis.call('HSET', key, 'row', ARGV[i + 2])
    done = done + 1
  end
end

local wanted, changed = {}, 0
for i = 2 + 3 * n_rows, #ARGV, 3 do wanted[ARGV[i] .. '\0' .. ARGV[i + 1]] = ARGV[i + 2] end
if not next(wanted) then return {'OK', done} end
local outbox = cell .. 'outbox'
local entries = redis.call('XRANGE', outbox, '-', '+')
for _, entry in ipairs(entries) do
  local fields, of = entry[2], {}
  for i = 1, #fields, 2 do of[fields[i]] = i + 1 end
  local body = wanted[fields[of.uid] .. '\0' .. fields[of.body]]
  if body then
    fields[of.body] = body
    changed = changed + 1
  end
end
if changed > 0 then
  redis.call('DEL', outbox)
  for _, entry in ipairs(entries) do redis.call('XADD', outbox, entry[1], unpack(entry[2])) end
end
return {'OK', done + changed}
