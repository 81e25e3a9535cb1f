#!lua
-- Stores one event, once per event id, and wakes the nodes that have a live session of the user.
-- Not allowed when memory is full: that is the publisher's to wait for.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   bucket_even      idempotency fields of the even windows
--   bucket_odd       idempotency fields of the odd windows
--   threads          the user's threads by the place of their last event
--   due              what the partition watches
--   counts           the partition's counts
--   waiting          users for whom something waits, by the time of the oldest entry that does
--   paused           types of which nothing is taken
-- ARGV
--   field            16 bytes that stand for user and event id
--   body             the envelope
--   user             the user id, which is the wake-up
--   channel          what the shard channels of the partition begin with
--   retention_ms     life of the stream and of its entries
--   dedupe_ms        length of a window
--   live_ttl_ms      life of a live field
--   max_entries      hard cap of the stream
--   max_bytes        hard cap of the stream's memory
--   policy           gap or reject
--   type             of the event, for the counts
--   thread           where it belongs, empty for none
--   level            a demanded confirmation, empty for none
--   within_ms        until when it must come, from now
-- Returns
--   {'stored', entry, nodes woken} | {'duplicate', entry} | {'full', entries, bytes} | {'paused'}
--@include clock
--@include life
--@include live
--@include counts
--@include storing

local known = known_entry()
if known then
  return { 'duplicate', known }
end
local entry, woken = store_event()
if not entry then
  return woken
end
return { 'stored', entry, woken }
