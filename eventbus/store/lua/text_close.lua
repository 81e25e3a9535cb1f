#!lua flags=allow-oom
-- Takes streams of a run off the index of what is open. One that had no last piece gets it, so that who follows it sees its end.
--
-- KEYS
--   text             the run's pieces
--   texts            the user's open streams
--   live             the user's live sessions
-- ARGV
--   user             the user id
--   run_id           the run
--   channel          what the shard channels of the partition begin with
--   text_life_ms     life of the pieces once no stream of the run is open
--   live_ttl_ms      life of a live field
--   which            all, or named
--   stream...        the names, where they are named
-- Returns
--   how many were open
--@include clock
--@include live
--@include texts

local text, open = KEYS[1], KEYS[2]
local user, run = ARGV[1], ARGV[2]
local names = {}
if ARGV[6] == 'all' then
  names = streams_of(open, run)
else
  for i = 7, #ARGV do
    names[#names + 1] = ARGV[i]
  end
end

local closed, ended = 0, 0
for _, name in ipairs(names) do
  local field = run .. ' ' .. name
  local length, _, state = text_parts(redis.call('HGET', open, field))
  if length then
    if state == 'open' then
      redis.call('XADD', text, '*', 's', name, 'o', string.format('%d', length), 'd', '', 'f', '1')
      ended = ended + 1
    end
    redis.call('HDEL', open, field)
    closed = closed + 1
  end
end
if closed > 0 and not is_streaming(open, run) then
  redis.call('PEXPIRE', text, ARGV[4])
end
if ended > 0 then
  tell_of_text(KEYS[3], ARGV[3], user, run, now_ms(), tonumber(ARGV[5]))
end
return closed
