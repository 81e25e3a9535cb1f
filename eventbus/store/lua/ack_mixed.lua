#!lua flags=allow-oom
-- Releases what clients of any users acked, whatever it is and through whichever door, records it and counts it. Not fenced: what a
-- client confirmed is confirmed, whoever says so. The first ack of an event that is `deliver: any` releases it for all sessions of the
-- user (D19). What fails for one fails for it alone. ack.lua does the same for less where that will do.
--
-- KEYS
--   stream...        repeated: the user's stream
--   records...       repeated: the user's confirmations
--   live...          repeated: the user's live sessions
--   released...      repeated: entry ids of `deliver: any` events that were acked
--   counts...        repeated: the partition's counts
-- ARGV
--   retention_ms     life of the records and of the ids
--   kept             which acks are recorded: all, required or off
--   live_ttl_ms      life of a live field
--   session...       repeated: the session id
--   door...          repeated: own: the session's connection acks; other: its node is told (D11)
--   user...          repeated: the user id
--   channel...       repeated: what the shard channels of the partition begin with
--   facts...         repeated: what is known of the entries, see facts.lua
--   ids...           repeated: entry ids with commas between them
-- Returns
--   for each session how many were pending | an error
--@include life
--@include counts
--@include records
--@include facts
--@include tally

local retention_ms, kept, live_ttl_ms = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local stream, records, live, any_acked, counts, session, user, channel
--@include acking

local function ack(door, facts, joined)
  local ids = {}
  for id in string.gmatch(joined, '[^,]+') do
    ids[#ids + 1] = id
  end
  local gone, shared, known = take(ids, parse_facts(facts))
  record(records, retention_ms, 'received', session, recorded(gone, known))
  if #shared > 0 then
--@include clock
--@include live
--@include order
--@include others
  end
  if door == 'other' and #gone > 0 then
--@include clock
--@include live
--@include door
  end
  return #gone
end

local answers, key = {}, 1
for i = 4, #ARGV, 6 do
  stream, records, live, any_acked, counts = KEYS[key], KEYS[key + 1], KEYS[key + 2], KEYS[key + 3], KEYS[key + 4]
  session, user, channel = ARGV[i], ARGV[i + 2], ARGV[i + 3]
  local fine, answer = pcall(ack, ARGV[i + 1], ARGV[i + 4], ARGV[i + 5])
  answers[#answers + 1] = (fine or type(answer) == 'table') and answer or { err = 'ERR ' .. tostring(answer) }
  key = key + 5
end
return answers
