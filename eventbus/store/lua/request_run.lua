#!lua
-- Writes down a run that is asked for before a worker has it, and watches that one comes.
-- Not allowed when memory is full: whoever asks is told.
--
-- KEYS
--   run              the run's hash
--   due              what the partition watches
-- ARGV
--   user             whose run it is
--   run_id           the run
--   retention_ms     life of the hash
--   change...        repeated: set or watch
--   name...          repeated: of a field, or of a deadline
--   value...         repeated: of a field; of a deadline, milliseconds from now
-- Returns
--   1, or 0 when the run is known already
--@include clock
--@include life

local run, due = KEYS[1], KEYS[2]
if redis.call('EXISTS', run) == 1 then
  return 0
end
local now = now_ms()
local fields = { 'user', ARGV[1], 'seq', '0', 'owner', '', 'state', 'requested', 'requested_ms', string.format('%d', now) }
for i = 4, #ARGV, 3 do
  if ARGV[i] == 'set' then
    fields[#fields + 1] = ARGV[i + 1]
    fields[#fields + 1] = ARGV[i + 2]
  else
    redis.call('ZADD', due, now + ARGV[i + 2], 'run ' .. ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[i + 1])
  end
end
redis.call('HSET', run, unpack(fields))
prolong(run, tonumber(ARGV[3]))
return 1
