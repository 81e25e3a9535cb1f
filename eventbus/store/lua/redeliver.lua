#!lua flags=allow-oom
-- Counts an attempt for entries that are about to be sent again. XCLAIM of a trimmed entry would drop it from the pending list
-- without a word, so each is looked at first (D11).
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
-- ARGV
--   live_ttl_ms      life of a live field
--   session          the session id
--   connection       the fencing token
--   id...            repeated: an entry id
--   attempts...      repeated: what its delivery count becomes
-- Returns
--   {'held', for each entry 'ready', 'gone' or 'trimmed'...} | {'lost'}
--@include clock
--@include live

local stream, session = KEYS[1], ARGV[2]
if not held_by(KEYS[2], session, ARGV[3], now_ms(), tonumber(ARGV[1])) then
  return { 'lost' }
end
local answer = { 'held' }
for i = 4, #ARGV, 2 do
  local id = ARGV[i]
  local waiting = redis.pcall('XPENDING', stream, session, id, id, 1)
  if waiting.err and not string.find(waiting.err, '^NOGROUP') then
    return waiting
  elseif waiting.err or #waiting == 0 then
    answer[#answer + 1] = 'gone'
  elseif #redis.call('XRANGE', stream, id, id) == 0 then
    answer[#answer + 1] = 'trimmed'
  else
    redis.call('XCLAIM', stream, session, 'c', 0, id, 'RETRYCOUNT', ARGV[i + 1], 'JUSTID')
    answer[#answer + 1] = 'ready'
  end
end
return answer
