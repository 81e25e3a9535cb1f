#!lua flags=allow-oom
-- Reads what is new for sessions of one user, each only if it belongs to the caller (D2).
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   released         entry ids of `deliver: any` events that were acked
--   gaps             gaps of which clients may not have heard
-- ARGV
--   live_ttl_ms      life of a live field
--   retention_ms     life of the gaps
--   session...       repeated: the session id
--   connection...    repeated: the fencing token
--   count...         repeated: the room in its window, at least 1
--   verify...        repeated: the last id read when the last read was a full one, else empty (D7)
-- Returns
--   for each session {'ok', entries} | {'ok', entries, reason or '', after, before, count or -1, released id...} | {'lost'} |
--   {'no_group'}, with each entry as {id, {'d', body}}
--@include clock
--@include live

local stream, live = KEYS[1], KEYS[2]
local live_ttl_ms = tonumber(ARGV[1])
local now = now_ms()
local names = { '#' }
for i = 3, #ARGV, 4 do
  names[#names + 1] = ARGV[i]
end
local holders = redis.call('HMGET', live, unpack(names))
-- The id up to which entries were taken away that somebody had not read.
local hole = holders[1]

-- Entries that were trimmed before the group read them, and the rollback behind the last id that it read.
local function look_for_gap(session, connection, verify)
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
      KEYS[4], tonumber(ARGV[2]), session, { after = from, upto = first or last, before = first or '-', count = lost }
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

-- Which of the entries another session has released already (D19). Few users have any.
local some_released = nil
local function released_among(entries)
  local found = {}
  if some_released == nil then
    some_released = redis.call('EXISTS', KEYS[3]) == 1
  end
  if some_released then
    local ids = {}
    for i, entry in ipairs(entries) do
      ids[i] = entry[1]
    end
    for i, is_member in ipairs(redis.call('SMISMEMBER', KEYS[3], unpack(ids))) do
      if is_member == 1 then
        found[#found + 1] = ids[i]
      end
    end
  end
  return found
end

local answers = {}
for i = 3, #ARGV, 4 do
  local session, connection, count, verify = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local _, holder = live_parts(holders[(i + 1) / 4 + 1], now, live_ttl_ms)
  local answer = nil
  if holder ~= connection then
    answer = { 'lost' }
  else
    local gap = nil
    local missing = verify ~= '' and #redis.call('XRANGE', stream, verify, verify) == 0
    if hole or missing then
      gap = look_for_gap(session, connection, missing and verify or '')
    end
    local read = redis.pcall('XREADGROUP', 'GROUP', session, 'c', 'COUNT', count, 'STREAMS', stream, '>')
    if read and read.err then
      if not string.find(read.err, '^NOGROUP') then
        return read
      end
      answer = { 'no_group' }
    else
      answer = { 'ok', read and read[1][2] or {} }
      local gone = read and released_among(read[1][2]) or {}
      if gap or #gone > 0 then
        for _, part in ipairs(gap or { '', '', '', -1 }) do
          answer[#answer + 1] = part
        end
        for _, id in ipairs(gone) do
          answer[#answer + 1] = id
        end
      end
    end
  end
  answers[#answers + 1] = answer
end

-- The mark goes when every live session is past it.
if hole then
--@include order
  local groups = groups_info(stream)
  local open = false
  for _, name in ipairs(redis.call('HKEYS', live)) do
    open = open or (groups[name] ~= nil and below(groups[name]['last-delivered-id'], hole))
  end
  if not open then
    redis.call('HDEL', live, '#')
  end
end
return answers
