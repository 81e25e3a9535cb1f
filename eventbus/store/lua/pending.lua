#!lua flags=allow-oom
-- A page of a session's pending entries, with neither their delivery counts nor their idle times changed (D8).
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
-- ARGV
--   live_ttl_ms      life of a live field
--   session          the session id
--   connection       the fencing token
--   after            the page begins after this id
--   count            entries at most, at least 1
-- Returns
--   {'last' or 'more', {id, delivery count, body or nil}...} | {'lost'}
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
local page = { #waiting > count and 'more' or 'last' }
for i = 1, math.min(#waiting, count) do
  local id = waiting[i][1]
  local entry = redis.call('XRANGE', stream, id, id)[1]
  page[#page + 1] = { id, waiting[i][4], entry and entry[2][2] or false }
end
return page
