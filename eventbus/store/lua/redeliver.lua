#!lua flags=allow-oom
-- Counts an attempt for entries that are about to be sent again. XCLAIM of a trimmed entry would drop it from the pending list
-- without a word, so each is looked at first (D11).
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   waiting          users for whom something waits
-- ARGV
--   live_ttl_ms      life of a live field
--   session          the session id
--   connection       the fencing token
--   user             the user id
--   retention_ms     life of the stream
--   id...            repeated: an entry id
--   attempts...      repeated: what its delivery count becomes
-- Returns
--   {'held', for each entry 'ready', 'gone' or 'trimmed'...} | {'lost'}
--@include clock
--@include live
--@include order
--@include life

local stream, session = KEYS[1], ARGV[2]
if not held_by(KEYS[2], session, ARGV[3], now_ms(), tonumber(ARGV[1])) then
  return { 'lost' }
end
local answer, late_ms = { 'held' }, nil
for i = 6, #ARGV, 2 do
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
    local ms = order(id)
    late_ms = math.min(late_ms or ms, ms)
  end
end
if late_ms then
  -- What was not acked in time waits.
  local noted = tonumber(redis.call('ZSCORE', KEYS[3], ARGV[4]) or nil)
  if not noted or noted < 0 or noted > late_ms then
    redis.call('ZADD', KEYS[3], string.format('%d', late_ms), ARGV[4])
    prolong(KEYS[3], 2 * tonumber(ARGV[5]))
  end
end
return answer
