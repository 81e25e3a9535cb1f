#!lua flags=allow-oom
-- Releases what clients acked over the connections of their sessions, records it and counts it: events that are of one kind for each
-- session and its alone, which is nearly all that is acked; ack_mixed.lua takes the rest. Not fenced: what a client confirmed is
-- confirmed, whoever says so. What fails for one fails for it alone.
--
-- KEYS
--   counts           the counts of a partition, of the first session's: only the sum over all partitions tells something
--   stream...        repeated: the user's stream
--   records...       repeated: the user's confirmations
-- ARGV
--   retention_ms     life of the records
--   kept             which acks are recorded: all, required or off
--   session...       repeated: the session id
--   facts...         repeated: what is known of the entries, see facts.lua
--   ids...           repeated: entry ids with commas between them
-- Returns
--   for each session how many were pending | an error
--@include life
--@include counts
--@include records
--@include facts

local retention_ms, kept = tonumber(ARGV[1]), ARGV[2]
-- Most of what is acked together is alike.
local parsed, received_of = {}, {}

local function ack(stream, records, session, facts, joined)
  local call = redis.call
  local one = parsed[facts]
  if not one then
    one = parse_facts(facts)[1]
    parsed[facts] = one
  end
  -- One by one, for one call for all does not tell which of them were there.
  local total, gone = 0, {}
  for id in string.gmatch(joined, '[^,]+') do
    total = total + 1
    if call('XACK', stream, session, id) == 1 then
      gone[#gone + 1] = id
    end
  end
  local n = #gone
  if n > 0 then
    received_of[one.type] = (received_of[one.type] or 0) + n
    if kept == 'all' or (kept == 'required' and one.demanded) then
      record_joined(records, retention_ms, 'received', session, n == total and joined or table.concat(gone, ','))
    end
  end
  return n
end

local answers, key = {}, 2
for i = 3, #ARGV, 3 do
  local fine, answer = pcall(ack, KEYS[key], KEYS[key + 1], ARGV[i], ARGV[i + 1], ARGV[i + 2])
  answers[#answers + 1] = (fine or type(answer) == 'table') and answer or { err = 'ERR ' .. tostring(answer) }
  key = key + 2
end
-- What can not be counted is released all the same.
pcall(function()
  for kind, n in pairs(received_of) do
    count(KEYS[1], 'received', kind, n)
  end
end)
return answers
