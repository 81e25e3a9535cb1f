#!lua flags=allow-oom
-- Takes a run over from whoever holds it, if that is still who the caller believes. May be repeated.
--
-- KEYS
--   run              the run's hash
--   due              what the partition watches
-- ARGV
--   user             whose run it is
--   run_id           the run
--   held_by          who holds the lease, empty for nobody
--   owner            who takes it
--   lease_ms         the lease from now on
--   retention_ms     life of the hash
-- Returns
--   the fields of the hash; nothing when the run is completed, unknown or another's
--@include clock
--@include life

local run = KEYS[1]
local stands = redis.call('HMGET', run, 'owner', 'state')
local holder = stands[1] or ''
if not stands[2] or stands[2] == 'completed' or (holder ~= ARGV[3] and holder ~= ARGV[4]) then
  return {}
end
redis.call('HSET', run, 'owner', ARGV[4], 'lease_ms', ARGV[5])
prolong(run, tonumber(ARGV[6]))
redis.call('ZADD', KEYS[2], now_ms() + ARGV[5], 'run ' .. ARGV[1] .. ' ' .. ARGV[2] .. ' lease')
return redis.call('HGETALL', run)
