#!lua flags=allow-oom
-- Destroys a session, whoever has it; its pending entries are recorded as expired.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   known            the user's sessions
--   records          the user's confirmations
--   counts           the partition's counts
-- ARGV
--   session          the session id
--   retention_ms     life of the records
--   followed         the channel of those who follow the user
-- Returns
--   how many entries were pending
--@include life
--@include counts
--@include records

if redis.call('HDEL', KEYS[2], ARGV[1], '#' .. ARGV[1]) > 0 then
  redis.call('SPUBLISH', ARGV[3], 'p')
end
redis.call('HDEL', KEYS[3], ARGV[1])
return end_group(KEYS[1], KEYS[4], KEYS[5], tonumber(ARGV[2]), ARGV[1])
