#!lua flags=allow-oom
-- Records that a client displayed or confirmed entries, and releases those that are pending, as an ack does. Not fenced.
--
-- An entry that was not delivered to the session is passed over: one counts as delivered when it was pending until now, or when
-- the session's ack of it is on record. 1,000 records are looked at from the newest, and 1,000 from the oldest entry's time.
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
--   kept             which acks are recorded: all or required
--   door             own: the session's connection acks; other: its node is told (D11)
--   user             the user id
--   channel          what the shard channels of the partition begin with
--   live_ttl_ms      life of a live field
--   facts            what is known of the entries, see facts.lua
--   level            displayed or confirmed
--   note             kept with the record; empty for none
--   id...            repeated: an entry id
-- Returns
--   {how many were pending, how many reached the level by this call}
--@include life
--@include order
--@include counts
--@include records
--@include facts
--@include tally

local LEVELS = { 'received', 'displayed', 'confirmed' }
local RANKS = { received = 1, displayed = 2, confirmed = 3 }
local BUDGET = 1000
local stream, records, live, any_acked, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local session, user, channel, level = ARGV[1], ARGV[5], ARGV[6], ARGV[9]
local retention_ms, kept, live_ttl_ms = tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[7])
local note = ARGV[10] ~= '' and ARGV[10] or nil
local ids = {}
for i = 11, #ARGV do
  ids[#ids + 1] = ARGV[i]
end

--@include acking

local facts = parse_facts(ARGV[8])
local gone, shared, known = take(ids, facts)
local acked = recorded(gone, known)
record(records, retention_ms, 'received', session, acked)
if #shared > 0 then
--@include clock
--@include live
--@include others
end
if ARGV[4] == 'other' and #gone > 0 then
--@include clock
--@include live
--@include door
end

-- What each entry has reached so far, by rank; what is not there was not delivered, as far as is known.
local reached = {}
for _, id in ipairs(acked) do
  reached[id] = 1
end

local wanted, missing, lowest = {}, 0, nil
if #gone < #ids then
  local group = groups_info(stream)[session]
  local position = group and group['last-delivered-id'] or '0-0'
  for _, id in ipairs(ids) do
    if not known[id] and not wanted[id] and not below(position, id) then
      wanted[id] = true
      missing = missing + 1
      if not lowest or below(id, lowest) then
        lowest = id
      end
    end
  end
end

local function note_down(fields)
  local rank = RANKS[fields[2]]
  if not rank or fields[4] ~= session then
    return
  end
  for id in string.gmatch(fields[6], '[^,]+') do
    if wanted[id] and rank > (reached[id] or 0) then
      if not reached[id] then
        missing = missing - 1
      end
      reached[id] = rank
    end
  end
end

-- Returns whether there is nothing more to look at in this direction.
local function look(command, from, to)
  local budget, size = BUDGET, 16
  while missing > 0 and budget > 0 do
    local count = math.min(size, budget)
    local page = redis.call(command, records, from, to, 'COUNT', count)
    for _, item in ipairs(page) do
      note_down(item[2])
    end
    if #page < count then
      return true
    end
    from = '(' .. page[#page][1]
    budget = budget - count
    size = math.min(4 * size, 256)
  end
  return missing == 0
end

if missing > 0 then
  -- A record of an entry is never older than the entry. From the newest on, for most confirmations follow their ack soon.
  local since = string.match(lowest, '^%d+') .. '-0'
  if not look('XREVRANGE', '+', since) then
    look('XRANGE', since, '+')
  end
end

local new = {}
local steps = {}
for i, id in ipairs(ids) do
  if reached[id] and reached[id] < RANKS[level] then
    for rank = reached[id] + 1, RANKS[level] do
      steps[rank] = steps[rank] or {}
      table.insert(steps[rank], id)
    end
    known[id] = known[id] or (facts[i].unknown and stored_facts(stream, id) or facts[i])
    reached[id] = RANKS[level]
    new[#new + 1] = id
  end
end
record(records, retention_ms, level, session, new, note)
-- A level that is reached at once counts as those before it too.
for rank, some in pairs(steps) do
  tally(counts, LEVELS[rank], some, known)
end
return { #gone, #new }
