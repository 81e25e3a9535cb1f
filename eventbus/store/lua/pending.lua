#!lua flags=allow-oom
-- A page of a session's pending entries, with neither their delivery counts nor their idle times changed (D8).
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   released         entry ids of `deliver: any` events that were acked
-- ARGV
--   live_ttl_ms      life of a live field
--   session          the session id
--   connection       the fencing token
--   after            the page begins after this id
--   count            entries at most, at least 1
-- Returns
--   {'last' or 'more', {id, delivery count, body or nil, 'released' when another session did that}...} | {'lost'}
--@include clock
--@include live

local stream, session, count = KEYS[1], ARGV[2], tonumber(ARGV[5])
if not held_by(KEYS[2], session, ARGV[3], now_ms(), tonumber(ARGV[1])) then
  return { 'lost' }
end
local waiting = redis.pcall('XPENDING', stream, session, '(' .. ARGV[4], '+', count + 1)
if waiting.err then
  -- No group: the read that follows says so.
  if string.find(waiting.err, '^NOGROUP') then
    return { 'last' }
  end
  return waiting
end
local some_released = redis.call('EXISTS', KEYS[3]) == 1
local page = { #waiting > count and 'more' or 'last' }
for i = 1, math.min(#waiting, count) do
  local id = waiting[i][1]
  local entry = redis.call('XRANGE', stream, id, id)[1]
  page[#page + 1] = { id, waiting[i][4], entry and entry[2][2] or false }
  if some_released and redis.call('SISMEMBER', KEYS[3], id) == 1 then
    page[#page][4] = 'released'
  end
end
return page
