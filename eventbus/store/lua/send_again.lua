#!lua flags=allow-oom
-- Has a session's node send pending entries again at once, beside its own waits: no attempt is counted.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
-- ARGV
--   user             the user id
--   session          the session id
--   channel          what the shard channels of the partition begin with
--   live_ttl_ms      life of a live field
--   id...            repeated: an entry id
-- Returns
--   {the session's node or '', the ids that are pending...}
--@include clock
--@include live

local answer = { live_parts(redis.call('HGET', KEYS[2], ARGV[2]), now_ms(), tonumber(ARGV[4])) or '' }
local ids = {}
for i = 5, #ARGV do
  local waiting = redis.pcall('XPENDING', KEYS[1], ARGV[2], ARGV[i], ARGV[i], 1)
  if waiting.err and not string.find(waiting.err, '^NOGROUP') then
    return waiting
  elseif not waiting.err and waiting[1] then
    ids[#ids + 1] = ARGV[i]
    answer[#answer + 1] = ARGV[i]
  end
end
if answer[1] ~= '' and #ids > 0 then
  redis.call('SPUBLISH', ARGV[3] .. answer[1], '%again ' .. ARGV[2] .. ' ' .. ARGV[1] .. ' ' .. table.concat(ids, ','))
end
return answer
