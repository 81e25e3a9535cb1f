#!lua
-- Stores events of any users, in their order and each once per event id, and wakes the nodes that have a live session of the user.
-- What fails for one fails for it alone.
-- Not allowed when memory is full: that is the publisher's to wait for.
--
-- KEYS
--   counts           the counts of a partition, of the first event's: only the sum over all partitions tells something
--   paused           types of which nothing is taken, of the same partition: they are put down in all
--   stream...        repeated: the user's stream
--   live...          repeated: the user's live sessions
--   bucket_even...   repeated: idempotency fields of the even windows
--   bucket_odd...    repeated: idempotency fields of the odd windows
--   threads...       repeated: the user's threads by the place of their last event
--   due...           repeated: what the partition watches
--   waiting...       repeated: users for whom something waits, by the time of the oldest entry that does
-- ARGV
--   retention_ms     life of the stream and of its entries
--   dedupe_ms        length of a window
--   live_ttl_ms      life of a live field
--   max_entries      hard cap of the stream
--   max_bytes        hard cap of the stream's memory
--   policy           gap or reject
--   field...         repeated: 16 bytes that stand for user and event id
--   body...          repeated: the envelope
--   user...          repeated: the user id, which is the wake-up
--   channel...       repeated: what the shard channels of the partition begin with
--   type...          repeated: of the event, for the counts
--   thread...        repeated: where it belongs, empty for none
--   level...         repeated: a demanded confirmation, empty for none
--   within_ms...     repeated: until when it must come, from now
-- Returns
--   for each event its entry and how many nodes were woken (two words and no table, which costs more than the rest of an answer)
--   | {'duplicate', entry} | {'full', entries, bytes} | {'paused'} | an error
--@include clock
--@include life
--@include live
--@include counts
--@include storing

local answers, key = {}, 3
for argument = 7, #ARGV, 8 do
  local fine, answer = pcall(store_event, key, argument)
  if fine and answer[1] == 'stored' then
    answers[#answers + 1] = answer[2]
    answers[#answers + 1] = answer[3]
  else
    answers[#answers + 1] = (fine or type(answer) == 'table') and answer or { err = 'ERR ' .. tostring(answer) }
  end
  key = key + 7
end
-- What can not be counted is stored all the same.
pcall(count_stored)
return answers
