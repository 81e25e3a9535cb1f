#!lua flags=allow-oom
-- Releases what a client acked, records it and counts it. Not fenced: what a client confirmed is confirmed, whoever says so.
-- The first ack of an event that is `deliver: any` releases it for all sessions of the user (D19).
--
-- KEYS
--   stream           the user's stream
--   records          the user's confirmations
--   live             the user's live sessions
--   released         entry ids of `deliver: any` events that were acked
--   counts           the partition's counts
-- ARGV
--   session          the session id
--   retention_ms     life of the records and of the ids
--   kept             which acks are recorded: all, required or off
--   door             own: the session's connection acks; other: its node is told (D11)
--   user             the user id
--   channel          what the shard channels of the partition begin with
--   live_ttl_ms      life of a live field
--   facts            what is known of the entries, see facts.lua
--   id...            repeated: an entry id
-- Returns
--   how many were pending
--@include life
--@include counts
--@include records
--@include facts
--@include tally
--@include acking

local ids = {}
for i = 9, #ARGV do
  ids[#ids + 1] = ARGV[i]
end
local gone, shared, known = take(ids, parse_facts(ARGV[8]))
record(KEYS[2], tonumber(ARGV[2]), 'received', ARGV[1], recorded(gone, known))
if #shared > 0 then
--@include clock
--@include live
--@include order
--@include others
end
if ARGV[4] == 'other' and #gone > 0 then
--@include clock
--@include live
--@include door
end
return #gone
