#!lua flags=allow-oom
-- What is due in a partition, the longest due first.
--
-- KEYS
--   due              what the partition watches
-- ARGV
--   count            most members of the answer
-- Returns
--   {now_ms, {member, due_ms, member, due_ms, ...}}
--@include clock

local now = now_ms()
return { now, redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'WITHSCORES', 'LIMIT', 0, ARGV[1]) }
