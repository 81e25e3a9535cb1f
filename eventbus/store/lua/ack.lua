#!lua flags=allow-oom
-- Releases what clients of any users acked, records it and counts it. Not fenced: what a client confirmed is confirmed, whoever says
-- so. The first ack of an event that is `deliver: any` releases it for all sessions of the user (D19). What fails for one fails for it
-- alone.
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

-- Most of what is acked together is alike.
local parsed = {}

-- Entries of one kind, which the session's own connection acks and which are its alone: nearly all that is acked. Returns how many
-- were pending.
local function ack_alike(one, joined)
  local call = redis.call
  local total, gone = 0, {}
  for id in string.gmatch(joined, '[^,]+') do
    total = total + 1
    if call('XACK', stream, session, id) == 1 then
      gone[#gone + 1] = id
    end
  end
  local n = #gone
  if n > 0 then
    count(counts, 'received', one.type, n)
    if kept == 'all' or (kept == 'required' and one.demanded) then
      record_joined(records, retention_ms, 'received', session, n == total and joined or table.concat(gone, ','))
    end
  end
  return n
end

local function ack(door, facts, joined)
  local known_facts = parsed[facts]
  if not known_facts then
    known_facts = parse_facts(facts)
    parsed[facts] = known_facts
  end
  local one = known_facts[1]
  if door == 'own' and one and one == known_facts[#known_facts] and not one.shared and not one.unknown then
    return ack_alike(one, joined)
  end
  local ids = {}
  for id in string.gmatch(joined, '[^,]+') do
    ids[#ids + 1] = id
  end
  local gone, shared, known = take(ids, known_facts)
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
