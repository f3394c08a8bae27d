#!lua
-- Append the records of a source to a join cell, and note how far the source was handed in: exactly once, whoever hands in.
-- KEYS  meta
-- ARGV  generation to use if the cell has none, source, expected offset or '', next offset, nonce, most arrivals and most bytes that
--       wait to be taken, then content...
-- Reply {CAS, offset or nil} | {OK, 1}, or {OK, 0} where the cell is full
local meta = KEYS[1]
local cell = string.sub(meta, 1, -5)
local mark, expected, next_offset, nonce = 'source:' .. ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local most, most_bytes = tonumber(ARGV[6]), tonumber(ARGV[7])
if #ARGV < 7 or not (most and most_bytes and string.match(next_offset, '^%d+$')) then return redis.error_reply('BADARGS hand in') end
local found = redis.call('TYPE', cell .. 'arrivals').ok
if found ~= 'stream' and found ~= 'none' then return redis.error_reply('WRONGTYPE arrivals') end

local handed = redis.call('HGET', meta, mark)
if (handed or '') ~= expected then return {'CAS', handed} end
local function number(field) return tonumber(redis.call('HGET', meta, field) or '0') end
local numbered, bytes = number('numbered'), number('bytes')
if #ARGV > 7 then
  local waiting, more = numbered - number('taken'), bytes - number('taken_bytes')
  for i = 8, #ARGV do more = more + #ARGV[i] end
  if waiting > 0 and (waiting + #ARGV - 7 > most or more > most_bytes) then return {'OK', 0} end
end

redis.call('HSETNX', meta, 'gen', ARGV[1])
if #ARGV > 7 then
  local proof = redis.sha1hex((redis.call('HGET', meta, 'proof') or '') .. nonce .. string.format('%.0f', numbered))
  for i = 8, #ARGV do
    bytes = bytes + #ARGV[i]
    redis.call('XADD', cell .. 'arrivals', string.format('%.0f', numbered) .. '-1', 'p', proof, 'b', string.format('%.0f', bytes),
      'c', ARGV[i])
    numbered = numbered + 1
  end
  redis.call('HSET', meta, 'proof', proof)
end
redis.call('HSET', meta, 'numbered', string.format('%.0f', numbered), 'bytes', string.format('%.0f', bytes), mark, next_offset)
return {'OK', 1}
