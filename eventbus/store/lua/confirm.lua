#!lua flags=allow-oom
-- Records that a client displayed or confirmed entries, and releases those that are pending, as an ack does. Not fenced.
--
-- An entry that was not delivered to the session is passed over: one counts as delivered when it was pending until now, or when
-- the session's ack of it is on record. 1,000 records are looked at from the newest, and 1,000 from the oldest entry's time.
--
-- KEYS
--   stream           the user's stream
--   records          the user's confirmations
-- ARGV
--   session          the session id
--   level            displayed or confirmed
--   retention_ms     life of the records
--   note             kept with the record; empty for none
--   id...            repeated: an entry id
-- Returns
--   {how many were pending, how many reached the level by this call}
--@include life
--@include order
--@include records

local RANKS = { received = 1, displayed = 2, confirmed = 3 }
local BUDGET = 1000
local session, level, retention_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
local note = ARGV[4] ~= '' and ARGV[4] or nil
local ids = {}
for i = 5, #ARGV do
  ids[#ids + 1] = ARGV[i]
end

local gone = released(KEYS[1], session, ids)
record(KEYS[2], retention_ms, 'received', session, gone)

-- What each entry has reached so far, by rank; what is not there was not delivered, as far as is known.
local reached = {}
for _, id in ipairs(gone) do
  reached[id] = 1
end

local wanted, missing, lowest = {}, 0, nil
if #gone < #ids then
  local group = groups_info(KEYS[1])[session]
  local position = group and group['last-delivered-id'] or '0-0'
  for _, id in ipairs(ids) do
    if not reached[id] and not wanted[id] and not below(position, id) then
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
    local page = redis.call(command, KEYS[2], from, to, 'COUNT', count)
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
for _, id in ipairs(ids) do
  if reached[id] and reached[id] < RANKS[level] then
    reached[id] = RANKS[level]
    new[#new + 1] = id
  end
end
record(KEYS[2], retention_ms, level, session, new, note)
return { #gone, #new }
