#!lua flags=allow-oom
-- Releases what a client acked, and records it. Not fenced: what a client confirmed is confirmed, whoever says so.
--
-- KEYS
--   stream           the user's stream
--   records          the user's confirmations
-- ARGV
--   session          the session id
--   level            what is recorded
--   retention_ms     life of the records
--   id...            repeated: an entry id
-- Returns
--   how many were pending
--@include life
--@include records

local ids = {}
for i = 4, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
local gone = released(KEYS[1], ARGV[1], ids)
record(KEYS[2], tonumber(ARGV[3]), ARGV[2], ARGV[1], gone)
return #gone
