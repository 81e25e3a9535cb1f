#!lua flags=no-writes,allow-oom
-- All sessions of a user, for operators.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   known            the user's sessions
-- ARGV
--   live_ttl_ms      life of a live field
--   session_ttl_ms   life of a session that is away
-- Returns
--   for each session {session, created_ms, last_seen_ms, cursor, position, pending, 'unread' or 'read', oldest pending or '',
--   highest delivery count, node or '', connection, stamp_ms}
--@include clock
--@include live
--@include order
--@include known

local stream = KEYS[1]
local now, live_ttl_ms = now_ms(), tonumber(ARGV[1])
local groups = groups_info(stream)
local answer, fields = {}, redis.call('HGETALL', KEYS[3])
for i = 1, #fields, 2 do
  local session = fields[i]
  local created, seen, cursor = known_parts(fields[i + 1])
  local value = redis.call('HGET', KEYS[2], session)
  local node, connection = live_parts(value, now, live_ttl_ms)
  if created and (node or now - seen < tonumber(ARGV[2])) then
    local stamp = node and tonumber(string.match(value, '(%d+)$')) or 0
    local group = groups[session]
    local position, pending, unread, oldest, attempts = '0-0', 0, 'read', '', 0
    if group then
      position, pending = group['last-delivered-id'], group['pending']
      if #redis.call('XRANGE', stream, '(' .. position, '+', 'COUNT', 1) > 0 then
        unread = 'unread'
      end
      for _, item in ipairs(redis.call('XPENDING', stream, session, '-', '+', 1024)) do
        oldest = oldest == '' and item[1] or oldest
        attempts = math.max(attempts, item[4])
      end
    end
    answer[#answer + 1] = {
      session, created, math.max(seen, stamp), cursor, position, pending, unread, oldest, attempts, node or '',
      connection or '', stamp,
    }
  end
end
return answer
