#!lua flags=allow-oom
-- Gives an entry up for a session that belongs to the caller: released, and only if that released it, written down (D21).
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   dead             the partition's dead letters
--   counts           the partition's counts
-- ARGV
--   live_ttl_ms      life of a live field
--   session          the session id
--   connection       the fencing token
--   life_ms          life of a dead letter
--   user             the user id
--   id               the entry id
--   event            the event id
--   type             the event's type
--   reason           why it is given up
--   attempts         its delivery count
--   body             its envelope, empty when it is unknown
-- Returns
--   'dead' | 'gone' | 'lost'
--@include clock
--@include live
--@include life
--@include counts

local stream, session, life_ms, id, body = KEYS[1], ARGV[2], tonumber(ARGV[4]), ARGV[6], ARGV[11]
local now = now_ms()
local node = held_by(KEYS[2], session, ARGV[3], now, tonumber(ARGV[1]))
if not node then
  return 'lost'
end
if redis.call('XACK', stream, session, id) == 0 then
  return 'gone'
end
if body == '' then
  local entry = redis.call('XRANGE', stream, id, id)[1]
  body = entry and entry[2][2] or ''
end
redis.call(
  'XADD', KEYS[3], 'MINID', '~', string.format('%d', now - life_ms), '*', 'user', ARGV[5], 'session', session, 'entry', id,
  'event', ARGV[7], 'type', ARGV[8], 'reason', ARGV[9], 'attempts', ARGV[10], 'node', node, 'body', body
)
redis.call('PEXPIRE', KEYS[3], life_ms)
count(KEYS[4], 'dead_lettered', ARGV[8], 1)
return 'dead'
