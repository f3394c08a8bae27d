#!lua
-- Say that a detector lives, by the server's clock. A duration of 0: it leaves.
-- KEYS  qw:detectors   ARGV  process, duration in ms
-- Reply {OK, how many live}
local process, duration_ms = ARGV[1], ARGV[2]
if #ARGV ~= 2 or process == '' or not string.match(duration_ms, '^%d+$') then
  return redis.error_reply('BADARGS attend')
end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now_ms)
if duration_ms == '0' then
  redis.call('ZREM', KEYS[1], process)
else
  redis.call('ZADD', KEYS[1], now_ms + duration_ms, process)
end
return {'OK', redis.call('ZCARD', KEYS[1])}
