#!lua flags=allow-oom
-- A node's own ack, for a session that belongs to the caller; recorded, and never a confirmation.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   records          the user's confirmations
-- ARGV
--   live_ttl_ms      life of a live field
--   session          the session id
--   connection       the fencing token
--   reason           what is recorded
--   retention_ms     life of the records
--   id...            repeated: an entry id
-- Returns
--   {'released', how many were pending} | {'lost'}
--@include clock
--@include live
--@include life
--@include records

if not held_by(KEYS[2], ARGV[2], ARGV[3], now_ms(), tonumber(ARGV[1])) then
  return { 'lost' }
end
local ids = {}
for i = 6, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
local gone = released(KEYS[1], ARGV[2], ids)
record(KEYS[3], tonumber(ARGV[5]), ARGV[4], ARGV[2], gone)
return { 'released', #gone }
