#!lua flags=allow-oom
-- Looks whether something waits for a user, and writes it down: what the index says may be late.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   waiting          users for whom something waits
-- ARGV
--   user             the user id
--   live_ttl_ms      life of a live field
--   retention_ms     life of the stream
-- Returns
--   the time of the oldest entry that waits, 0 when none does
--@include clock
--@include live
--@include order
--@include life
--@include index

local now, is_live = now_ms(), false
local fields = redis.call('HGETALL', KEYS[2])
for i = 1, #fields, 2 do
  if string.sub(fields[i], 1, 1) ~= '#' and live_parts(fields[i + 1], now, tonumber(ARGV[2])) then
    is_live = true
  end
end
local oldest = oldest_waiting(KEYS[1], groups_info(KEYS[1]))
return note_waiting(KEYS[3], ARGV[1], oldest, is_live, now, tonumber(ARGV[3]), 0) or 0
