#!lua flags=allow-oom
-- Reads what is new for sessions of any users, each only if it belongs to the caller (D2). What fails for one fails for it alone.
-- Reads are the calls of which there are most: many in one cost less than half as much.
--
-- KEYS
--   stream...        repeated: the user's stream
--   live...          repeated: the user's live sessions
--   released...      repeated: entry ids of `deliver: any` events that were acked
--   gaps...          repeated: gaps of which clients may not have heard
-- ARGV
--   live_ttl_ms      life of a live field
--   retention_ms     life of the gaps
--   session...       repeated: the session id
--   connection...    repeated: the fencing token
--   count...         repeated: the room in its window, at least 1
--   verify...        repeated: the last id read when the last read was a full one, else empty (D7)
-- Returns
--   for each session how many entries, then id and body of each (words and no tables, which cost more than the words)
--   | {'ok', entries, reason or '', after, before, count or -1, released id...} with each entry as {id, {'d', body}}
--   | {'lost'} | {'no_group'} | an error
--@include clock
--@include live

local live_ttl_ms = tonumber(ARGV[1])
local now = now_ms()

-- Entries that were trimmed before the group read them, and the rollback behind the last id that it read.
local function look_for_gap(stream, live, gaps, session, connection, verify)
--@include order
--@include told
--@include gaps
  local group = groups_info(stream)[session]
  local info = stream_info(stream)
  if not group or not info then
    return nil
  end
  local position, last = group['last-delivered-id'], info['last-generated-id']
  local first = info['length'] > 0 and info['first-entry'][1] or nil
  local trimmed = info['entries-added'] - info['length']
  local entries_read = group['entries-read']
  local before_first = trimmed > 0 and below(position, last) and (not first or below(position, first))
  if entries_read and trimmed > entries_read or not entries_read and before_first then
    -- Announced once: from here on the group counts as having read what is gone. What the attach told is not told again.
    local told = told_count(redis.call('HGET', live, '#' .. session), connection)
    redis.call('XGROUP', 'SETID', stream, session, position, 'ENTRIESREAD', trimmed)
    redis.call('HDEL', live, '#' .. session)
    local from = position ~= '0-0' and position or '-'
    local lost = entries_read and trimmed - entries_read or -1
    note_gap(
      gaps, tonumber(ARGV[2]), session, { after = from, upto = first or last, before = first or '-', count = lost }
    )
    if trimmed > told then
      local count = (entries_read or told > 0) and trimmed - math.max(entries_read or 0, told) or -1
      return { 'trimmed', position ~= '0-0' and position or '', first or '', count }
    end
  end
  if verify ~= '' and (below(last, verify) or (first and below(first, verify))) then
    local surviving = redis.call('XREVRANGE', stream, verify, '-', 'COUNT', 1)
    surviving = surviving[1] and surviving[1][1] or '0-0'
    if below(surviving, position) then
      redis.call('XGROUP', 'SETID', stream, session, surviving)
    end
    local following = redis.call('XRANGE', stream, '(' .. surviving, '+', 'COUNT', 1)
    return { 'rollback', surviving ~= '0-0' and surviving or verify, following[1] and following[1][1] or '', -1 }
  end
  return nil -- read and trimmed since: nothing is lost (D15)
end

-- Which of the entries another session has released already (D19).
local function released_among(entries, released)
  local ids, found = {}, {}
  for i, entry in ipairs(entries) do
    ids[i] = entry[1]
  end
  for i, is_member in ipairs(redis.call('SMISMEMBER', released, unpack(ids))) do
    if is_member == 1 then
      found[#found + 1] = ids[i]
    end
  end
  return found
end

-- The mark of a hole goes when every live session is past it.
local function clear_hole(stream, live, hole)
--@include order
  local groups = groups_info(stream)
  for _, name in ipairs(redis.call('HKEYS', live)) do
    if groups[name] and below(groups[name]['last-delivered-id'], hole) then
      return
    end
  end
  redis.call('HDEL', live, '#')
end

-- Few users have any that were released: one look for all.
local all_released = {}
for key = 3, #KEYS, 4 do
  all_released[#all_released + 1] = KEYS[key]
end
local is_any_released = redis.call('EXISTS', unpack(all_released)) > 0

local answers = {}
local key = 1
for i = 3, #ARGV, 4 do
  local session, connection, count, verify = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local stream, live, released = KEYS[key], KEYS[key + 1], KEYS[key + 2]
  -- The first is the id up to which entries were taken away that somebody had not read.
  local fields = redis.pcall('HMGET', live, '#', session)
  local answer = fields
  if not fields.err then
    local hole = fields[1]
    local _, holder = live_parts(fields[2], now, live_ttl_ms)
    if holder ~= connection then
      answer = { 'lost' }
    else
      local gap = nil
      local missing = verify ~= '' and #redis.call('XRANGE', stream, verify, verify) == 0
      if hole or missing then
        gap = look_for_gap(stream, live, KEYS[key + 3], session, connection, missing and verify or '')
      end
      local read = redis.pcall('XREADGROUP', 'GROUP', session, 'c', 'COUNT', count, 'STREAMS', stream, '>')
      if read and read.err then
        answer = string.find(read.err, '^NOGROUP') and { 'no_group' } or read
      else
        local entries = read and read[1][2] or {}
        local gone = read and is_any_released and released_among(entries, released) or {}
        if gap or #gone > 0 then
          answer = { 'ok', entries, unpack(gap or { '', '', '', -1 }) }
          for _, id in ipairs(gone) do
            answer[#answer + 1] = id
          end
        else
          answer = nil
          answers[#answers + 1] = #entries
          for _, entry in ipairs(entries) do
            answers[#answers + 1] = entry[1]
            answers[#answers + 1] = entry[2][2]
          end
        end
      end
    end
    if hole then
      clear_hole(stream, live, hole)
    end
  end
  if answer then
    answers[#answers + 1] = answer
  end
  key = key + 4
end
return answers
