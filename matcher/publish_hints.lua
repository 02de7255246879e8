-- Adds hints to a market's stream as one numbered entry.
-- KEYS  1 meta, 2 stream. ARGV 1 name for a new generation, 2 hints (msgpack), 3 how many entries the stream keeps.
-- Answers the entry's number.
local head = redis.call('HMGET', KEYS[1], 'generation', 'n')
local generation, n = head[1], tonumber(head[2]) or 0
if not generation then
  redis.call('UNLINK', KEYS[2])
  generation, n = ARGV[1], 0
end
n = n + 1
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], string.format('%.0f-1', n), 'generation', generation, 'hints', ARGV[2])
redis.call('HSET', KEYS[1], 'generation', generation, 'n', string.format('%.0f', n))
return n
