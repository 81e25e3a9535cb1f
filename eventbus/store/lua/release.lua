#!lua flags=allow-oom
-- A node's own ack, for a session that belongs to the caller; recorded and counted, and never a confirmation.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   records          the user's confirmations
--   counts           the partition's counts
--   gaps             gaps of which clients may not have heard
-- ARGV
--   live_ttl_ms      life of a live field
--   session          the session id
--   connection       the fencing token
--   reason           what is recorded
--   retention_ms     life of the records
--   facts            what is known of the entries, see facts.lua
--   id...            repeated: an entry id
-- Returns
--   {'released', how many were pending} | {'lost'}
--@include clock
--@include live
--@include life
--@include counts
--@include records
--@include facts
--@include tally

if not held_by(KEYS[2], ARGV[2], ARGV[3], now_ms(), tonumber(ARGV[1])) then
  return { 'lost' }
end
local ids = {}
for i = 7, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
local facts, known = parse_facts(ARGV[6]), {}
for i, id in ipairs(ids) do
  known[id] = facts[i].unknown and stored_facts(KEYS[1], id) or facts[i]
end
local gone = released(KEYS[1], ARGV[2], ids)
tally(KEYS[4], ARGV[4], gone, known)
if ARGV[4] == 'trimmed' and #gone > 0 then
--@include gaps
  -- Its client was told just now, and may be gone before it has heard of it.
  local following = redis.call('XRANGE', KEYS[1], '(' .. gone[#gone], '+', 'COUNT', 1)[1]
  local before = following and following[1] or '-'
  local upto = following and before or gone[#gone]
  note_gap(KEYS[5], tonumber(ARGV[5]), ARGV[2], { after = '-', upto = upto, before = before, count = #gone })
end
record(KEYS[3], tonumber(ARGV[5]), ARGV[4], ARGV[2], gone)
return { 'released', #gone }
