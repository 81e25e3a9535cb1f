#!lua flags=allow-oom
-- Settles one deadline, unless another has settled or moved it meanwhile (D22): all of it, or nothing.
--
-- KEYS
--   due              what the partition watches
--   operators        the events for the operators
--   run              the hash of the run that is concerned; any key of the partition when none is
-- ARGV
--   member           the deadline
--   due_ms           when it was due as it was read
--   run_id           the run that is concerned, empty for none; nothing is written into a hash that is gone
--   announced_ms     life of the events for the operators
--   webhook          webhook to deliver the announced event, else empty
--   change...        repeated: watch, set, count or announce
--   name...          repeated: a member; a field of the run; a field of the event for the operators
--   value...         repeated: milliseconds from now; a value; what is added; a value
-- Returns
--   now_ms, 0 when nothing was done
--@include clock
--@include life

local due, operators, run = KEYS[1], KEYS[2], KEYS[3]
local at = redis.call('ZSCORE', due, ARGV[1])
if not at or tonumber(at) ~= tonumber(ARGV[2]) then
  return 0
end
redis.call('ZREM', due, ARGV[1])
local now = now_ms()
local known = ARGV[3] ~= '' and redis.call('EXISTS', run) == 1
local announced = {}
for i = 6, #ARGV, 3 do
  local change, name, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if change == 'watch' then
    redis.call('ZADD', due, now + value, name)
  elseif change == 'announce' then
    announced[#announced + 1] = name
    announced[#announced + 1] = value
  elseif known and change == 'set' then
    redis.call('HSET', run, name, value)
  elseif known then
    redis.call('HINCRBY', run, name, value)
  end
end
if #announced > 0 then
  local id = redis.call('XADD', operators, 'MAXLEN', '~', 10000, '*', unpack(announced))
  prolong(operators, tonumber(ARGV[4]))
  if ARGV[5] == 'webhook' then
    redis.call('ZADD', due, now, 'webhook ' .. id .. ' 1')
  end
end
return now
