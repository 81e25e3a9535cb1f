#!lua flags=allow-oom
-- Destroys a session, whoever has it; its pending entries are recorded as expired.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   known            the user's sessions
--   records          the user's confirmations
--   counts           the partition's counts
--   waiting          users for whom something waits
-- ARGV
--   session          the session id
--   retention_ms     life of the records
--   followed         the channel of those who follow the user
--   user             the user id
--   channel          what the shard channels of the partition begin with
--   live_ttl_ms      life of a live field
-- Returns
--   how many entries were pending
--@include clock
--@include live
--@include order
--@include life
--@include counts
--@include records
--@include index

local now = now_ms()
local node = live_parts(redis.call('HGET', KEYS[2], ARGV[1]), now, tonumber(ARGV[6]))
if redis.call('HDEL', KEYS[2], ARGV[1], '#' .. ARGV[1]) > 0 then
  redis.call('SPUBLISH', ARGV[3], 'p')
end
if node then
  -- Its node would open it again, for it finds nobody in it.
  redis.call('SPUBLISH', ARGV[5] .. node, '%end ' .. ARGV[1] .. ' ' .. ARGV[4])
end
redis.call('HDEL', KEYS[3], ARGV[1])
local ended = end_group(KEYS[1], KEYS[4], KEYS[5], tonumber(ARGV[2]), ARGV[1])
local oldest = oldest_waiting(KEYS[1], groups_info(KEYS[1]))
note_waiting(KEYS[6], ARGV[4], oldest, redis.call('EXISTS', KEYS[2]) == 1, now, tonumber(ARGV[2]), 0)
return ended
