#!lua flags=allow-oom
-- Renews the lease of a run for its owner.
--
-- KEYS
--   run              the run's hash
--   due              what the partition watches
-- ARGV
--   user             whose run it is
--   run_id           the run
--   owner            who holds the lease
--   lease_ms         the lease from now on
--   retention_ms     life of the hash
-- Returns
--   1, also for a run of which nothing is known (its next event brings it back); 0 when it is completed or another's
--@include clock
--@include life

local stands = redis.call('HMGET', KEYS[1], 'owner', 'state')
if not stands[2] then
  return 1
end
if stands[1] ~= ARGV[3] or stands[2] == 'completed' then
  return 0
end
prolong(KEYS[1], tonumber(ARGV[5]))
redis.call('ZADD', KEYS[2], now_ms() + ARGV[4], 'run ' .. ARGV[1] .. ' ' .. ARGV[2] .. ' lease')
return 1
