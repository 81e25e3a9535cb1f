-- What a session did with some entries, one record a call: level, session, ids with commas between them, perhaps a note.
local function record_joined(key, retention_ms, level, session, joined, note)
  if note then
    redis.call('XADD', key, 'MAXLEN', '~', '10000', '*', 'level', level, 'session', session, 'ids', joined, 'note', note)
  else
    redis.call('XADD', key, 'MAXLEN', '~', '10000', '*', 'level', level, 'session', session, 'ids', joined)
  end
  prolong(key, retention_ms)
end

local function record(key, retention_ms, level, session, ids, note)
  if #ids > 0 then
    record_joined(key, retention_ms, level, session, table.concat(ids, ','), note)
  end
end

-- XACK of ids one by one: what was not pending must not be recorded, and one call for all does not tell which those were.
local function released(stream_key, session, ids)
  local gone = {}
  for _, id in ipairs(ids) do
    if redis.call('XACK', stream_key, session, id) == 1 then
      gone[#gone + 1] = id
    end
  end
  return gone
end

-- Ends a session: its group goes, and what was pending is recorded and counted as expired, whatever its type. Returns how many entries that were.
-- Pages of 500 keep the tables small; a window bounds the pending list to about 1024 entries.
local function end_group(stream_key, records_key, counts_key, retention_ms, session)
  local total = 0
  local from = '-'
  while true do
    local page = redis.pcall('XPENDING', stream_key, session, from, '+', 500)
    if page.err or #page == 0 then
      break
    end
    local ids = {}
    for i, item in ipairs(page) do
      ids[i] = item[1]
    end
    total = total + #ids
    record(records_key, retention_ms, 'expired', session, ids)
    from = '(' .. ids[#ids]
  end
  redis.pcall('XGROUP', 'DESTROY', stream_key, session)
  count(counts_key, 'expired', '', total)
  return total
end
