#!lua flags=no-writes,allow-oom
-- How many entries wait for those sessions of a user that are away: sent and not acked, or not read.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
-- ARGV
--   live_ttl_ms      life of a live field
-- Returns
--   their number, each entry once for each of these sessions
--@include clock
--@include live
--@include order

local stream, now, live_ttl_ms = KEYS[1], now_ms(), tonumber(ARGV[1])
local length, newest, sum = redis.call('XLEN', stream), nil, 0
for session, group in pairs(groups_info(stream)) do
  if not live_parts(redis.call('HGET', KEYS[2], session), now, live_ttl_ms) then
    if newest == nil then
      local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
      newest = last and last[1] or false
    end
    local unread = 0
    if newest and below(group['last-delivered-id'], newest) then
      -- No server knows the lag of a group that was set back (D4), and 7.0 counts what was trimmed as well: the length bounds both.
      unread = math.min(length, group['lag'] or length)
    end
    sum = sum + group['pending'] + unread
  end
end
return sum
