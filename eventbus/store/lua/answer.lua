#!lua
-- Settles a question: one answer is accepted, and the event that tells of it is stored with it, or nothing happens.
-- Not allowed when memory is full: it stores an event.
--
-- KEYS
--   counts           the partition's counts
--   paused           types of which nothing is taken
--   stream           the user's stream
--   live             the user's live sessions
--   bucket_even      idempotency fields of the even windows
--   bucket_odd       idempotency fields of the odd windows
--   threads          the user's threads by the place of their last event
--   due              what the partition watches
--   waiting          users for whom something waits, by the time of the oldest entry that does
--   questions        the user's questions
--   run              the hash of the run that asked
-- ARGV
--   retention_ms     life of the stream and of its entries
--   dedupe_ms        length of a window
--   live_ttl_ms      life of a live field
--   max_entries      hard cap of the stream
--   max_bytes        hard cap of the stream's memory
--   policy           gap or reject
--   field            16 bytes that stand for user and event id
--   body             the envelope
--   user             the user id, which is the wake-up
--   channel          what the shard channels of the partition begin with
--   type             of the event, for the counts
--   thread           where it belongs, empty for none
--   level            a demanded confirmation, empty for none
--   within_ms        until when it must come, from now
--   run_id           the run that asked
--   question         its name in the run
--   by               user or deadline
--   form             text or other: what the answer is
--   choice           the answer, when it is a text
--   settled          what is kept of the answer, as MessagePack; the same again is accepted again
--   followed         the user's shard channel
-- Returns
--   {'accepted', the event's entry} | {'unknown_question'} | {'question_closed'} | {'already_answered'} | {'bad_answer'}
--   | {'early', milliseconds to the deadline} | {'full', entries, bytes}
--@include clock
--@include life
--@include live
--@include counts
--@include storing
--@include question

local questions, asked = KEYS[10], ARGV[15] .. ' ' .. ARGV[16]
local question = question_at(questions, asked)
if not question then
  return { 'unknown_question' }
end
if question[STATE] == 'answered' then
  -- The client asks again because it did not hear of it, or this is another's.
  if question[SETTLED] ~= ARGV[20] then
    return { 'already_answered' }
  end
  local known = store_event(3, 7, function()
    return { 'forgotten', '' }
  end)
  return { 'accepted', known[2] }
end
if question[STATE] ~= 'open' or redis.call('HGET', KEYS[11], 'state') == 'completed' then
  return { 'question_closed' }
end
local is_late = question[DEADLINE] ~= 0 and question[DEADLINE] <= now
if ARGV[17] == 'deadline' then
  if not is_late then
    return { 'early', question[DEADLINE] == 0 and 0 or question[DEADLINE] - now }
  end
elseif is_late then
  return { 'question_closed' }
else
  local is_offered = #question[OPTIONS] == 0
  for _, option in ipairs(question[OPTIONS]) do
    is_offered = is_offered or (ARGV[18] == 'text' and option == ARGV[19])
  end
  if not is_offered then
    return { 'bad_answer' }
  end
end

local stored = store_event(3, 7)
if stored[1] ~= 'stored' and stored[1] ~= 'duplicate' then
  return stored
end
count_stored()
question[STATE], question[SETTLED] = 'answered', ARGV[20]
keep_question(questions, asked, question)
prolong(questions, retention_ms)
redis.call('SPUBLISH', ARGV[21], 'a')
return { 'accepted', stored[2] }
