#!lua flags=allow-oom
-- Renews sessions of one user, and the life of the user's keys; says what the sweep wants to know (D1, D17).
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   known            the user's sessions
--   records          the user's confirmations
--   counts           the partition's counts
--   waiting          users for whom something waits
-- ARGV
--   node             the caller
--   live_ttl_ms      life of a live field
--   session_ttl_ms   life of a session that is away
--   retention_ms     life of the stream
--   user             the user id
--   young_ms         what waits for less is on its way
--   session...       repeated: the session id
--   connection...    repeated: the fencing token
-- Returns
--   for each session {'held', pending, 'unread' or 'read'} | {'missing'} | {'lost'}
--@include clock
--@include live
--@include order
--@include life
--@include counts
--@include records
--@include known
--@include index

local stream, live, known = KEYS[1], KEYS[2], KEYS[3]
local live_ttl_ms, session_ttl_ms, retention_ms = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now = now_ms()
local holders, fields = {}, redis.call('HGETALL', live)
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 1) ~= '#' then
    local _, connection = live_parts(fields[i + 1], now, live_ttl_ms)
    holders[fields[i]] = connection
    if not connection then
      redis.call('HDEL', live, fields[i])
    end
  end
end

local groups = groups_info(stream)
local answers, renewed = {}, {}
for i = 7, #ARGV, 2 do
  local session, connection = ARGV[i], ARGV[i + 1]
  local group = groups[session]
  if holders[session] and holders[session] ~= connection then
    answers[#answers + 1] = { 'lost' }
  elseif not holders[session] or not group then
    answers[#answers + 1] = { 'missing' }
  else
    redis.call('HSET', live, session, string.format('%s %s %d', ARGV[1], connection, now))
    renewed[#renewed + 1] = session
    local following = redis.call('XRANGE', stream, '(' .. group['last-delivered-id'], '+', 'COUNT', 1)
    answers[#answers + 1] = { 'held', group['pending'], #following > 0 and 'unread' or 'read' }
  end
end
if #renewed == 0 then
  return answers
end
note_waiting(KEYS[6], ARGV[5], oldest_waiting(stream, groups), true, now, retention_ms, tonumber(ARGV[6]))
redis.call('PEXPIRE', live, live_ttl_ms)
keep_stream(stream, retention_ms)

-- When a session was seen is written down once in a while only; then also those whose time is over are ended (D16).
local stale_ms = math.min(60000, session_ttl_ms / 16)
local written = false
for _, session in ipairs(renewed) do
  local created, seen, cursor = known_parts(redis.call('HGET', known, session))
  if not created or now - seen >= stale_ms then
    redis.call('HSET', known, session, known_value(created or now, now, cursor or '0-0'))
    written = true
  end
end
if written then
  redis.call('PEXPIRE', known, session_ttl_ms)
  fields = redis.call('HGETALL', known)
  for i = 1, #fields, 2 do
    local _, seen = known_parts(fields[i + 1])
    if not holders[fields[i]] and (not seen or now - seen >= session_ttl_ms) then
      redis.call('HDEL', known, fields[i])
      end_group(stream, KEYS[4], KEYS[5], retention_ms, fields[i])
    end
  end
end
return answers
