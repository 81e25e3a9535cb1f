#!lua flags=allow-oom
-- A session that belongs to the caller goes away and keeps its place.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   known            the user's sessions
--   waiting          users for whom something waits
-- ARGV
--   live_ttl_ms      life of a live field
--   session          the session id
--   connection       the fencing token
--   cursor           up to where the client has handled everything
--   session_ttl_ms   life of a session that is away
--   retention_ms     life of the stream
--   followed         the channel of those who follow the user
--   user             the user id
-- Returns
--   'detached' | 'lost'
--@include clock
--@include live
--@include known
--@include order
--@include life
--@include index

local session, now = ARGV[2], now_ms()
if not held_by(KEYS[2], session, ARGV[3], now, tonumber(ARGV[1])) then
  return 'lost'
end
redis.call('HDEL', KEYS[2], session, '#' .. session)
redis.call('SPUBLISH', ARGV[7], 'p')
local created = known_parts(redis.call('HGET', KEYS[3], session))
redis.call('HSET', KEYS[3], session, known_value(created or now, now, ARGV[4]))
redis.call('PEXPIRE', KEYS[3], tonumber(ARGV[5]))
-- The group must outlive the session's time, so the stream lives for the whole retention from here.
if redis.call('PTTL', KEYS[1]) < tonumber(ARGV[6]) then
  redis.call('PEXPIRE', KEYS[1], tonumber(ARGV[6]))
end
local others = 0
for _, name in ipairs(redis.call('HKEYS', KEYS[2])) do
  others = others + (string.sub(name, 1, 1) == '#' and 0 or 1)
end
local oldest = oldest_waiting(KEYS[1], groups_info(KEYS[1]))
note_waiting(KEYS[4], ARGV[8], oldest, others > 0, now, tonumber(ARGV[6]), 0)
return 'detached'
