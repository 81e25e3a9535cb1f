#!lua flags=no-writes,allow-oom
-- How much of what a partition holds.
--
-- KEYS
--   waiting          users for whom something waits
--   dead             the partition's dead letters
--   due              what the partition watches
--   operators        the events for the operators
-- ARGV
-- Returns
--   {users for whom something waits, time of the oldest entry that does or 0, dead letters, deadlines, events for operators,
--    live users without anything that waits}
local first = redis.call('ZRANGEBYSCORE', KEYS[1], 1, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return {
  redis.call('ZCOUNT', KEYS[1], 1, '+inf'), tonumber(first[2] or 0), redis.call('XLEN', KEYS[2]), redis.call('ZCARD', KEYS[3]),
  redis.call('XLEN', KEYS[4]), redis.call('ZCOUNT', KEYS[1], '-inf', -1),
}
