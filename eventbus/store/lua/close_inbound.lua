#!lua flags=allow-oom
-- A run is over: its group and its commands go, and its open questions take no answers any more.
--
-- KEYS
--   commands         the user's commands
--   questions        the user's questions
-- ARGV
--   run_id           the run
-- Returns
--   how many questions were closed
--@include inbound
--@include question

local run_id = ARGV[1]
redis.pcall('XGROUP', 'DESTROY', KEYS[1], 'run:' .. run_id)
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1000)) do
  if named(entry[2])['run'] == run_id then
    redis.call('XDEL', KEYS[1], entry[1])
  end
end
local closed = 0
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  if string.sub(all[i], 1, #run_id + 1) == run_id .. ' ' then
    local question = cmsgpack.unpack(all[i + 1])
    if question[STATE] == 'open' then
      question[STATE] = 'closed'
      keep_question(KEYS[2], all[i], question)
      closed = closed + 1
    end
  end
end
return closed
