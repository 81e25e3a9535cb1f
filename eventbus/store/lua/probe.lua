#!lua flags=allow-oom
-- Proves the path of a delivery: writes an entry, reads it as a session's group does, and wakes the node.
--
-- KEYS
--   probe            a stream of the node's own
-- ARGV
--   own_channel      the node's channel in the partition
--   message          what it is told there
--   token            what is written and must be read
--   life_ms          life of the stream
-- Returns
--   the token as it was read

-- Made anew each time: a probe that was not read before must not pass for this one.
redis.call('DEL', KEYS[1])
redis.call('XGROUP', 'CREATE', KEYS[1], 'c', '$', 'MKSTREAM')
redis.call('PEXPIRE', KEYS[1], ARGV[4])
redis.call('XADD', KEYS[1], '*', 'd', ARGV[3])
local read = redis.call('XREADGROUP', 'GROUP', 'c', 'c', 'COUNT', 1, 'STREAMS', KEYS[1], '>')
redis.call('SPUBLISH', ARGV[1], ARGV[2])
return read and read[1][2][1][2][2] or ''
