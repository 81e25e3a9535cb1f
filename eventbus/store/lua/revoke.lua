#!lua flags=allow-oom
-- Revokes a token, a session or a user, and tells the nodes. What has ended leaves.
--
-- KEYS
--   revoked_records  subject -> `<number> <revoked_ms> <until_ms> <record>`; `#epoch` and `#number` are those of the list
--   revoked_order    the subjects by number
--   revoked_ends     the subjects by the time when their revocation ends
-- ARGV
--   fresh_epoch      a random word, for a list that begins
--   subject          what is revoked
--   revocation       its JSON
--   until_ms         when it ends, Unix milliseconds; 0 for the longest life of a token from now
--   token_life_ms    the longest life of a token
--   max_revocations  so many at most
--   told...          repeated: a shard channel of a node
-- Returns
--   the record as it is stored, or `full`
--@include clock

local records, order, ends = KEYS[1], KEYS[2], KEYS[3]
local now = now_ms()
local over = redis.call('ZRANGEBYSCORE', ends, '-inf', now, 'LIMIT', 0, 100)
for _, subject in ipairs(over) do
  redis.call('HDEL', records, subject)
  redis.call('ZREM', order, subject)
  redis.call('ZREM', ends, subject)
end
local until_ms = tonumber(ARGV[4])
if until_ms == 0 then
  until_ms = now + tonumber(ARGV[5])
end
-- Clocks differ: a token that has just expired here may be good for a moment elsewhere.
until_ms = math.max(until_ms, now + 60000)
local known = redis.call('ZSCORE', ends, ARGV[2])
if known then
  until_ms = math.max(until_ms, tonumber(known))
elseif redis.call('ZCARD', order) >= tonumber(ARGV[6]) then
  return 'full'
end
redis.call('HSETNX', records, '#epoch', ARGV[1])
local number = redis.call('HINCRBY', records, '#number', 1)
local stored = string.format('%d %d %d %s', number, now, until_ms, ARGV[3])
redis.call('HSET', records, ARGV[2], stored)
redis.call('ZADD', order, number, ARGV[2])
redis.call('ZADD', ends, string.format('%d', until_ms), ARGV[2])
local last = redis.call('ZRANGE', ends, -1, -1, 'WITHSCORES')
for _, key in ipairs({ records, order, ends }) do
  redis.call('PEXPIREAT', key, string.format('%d', tonumber(last[2])))
end
for i = 7, #ARGV do
  redis.call('SPUBLISH', ARGV[i], '^')
end
return stored
