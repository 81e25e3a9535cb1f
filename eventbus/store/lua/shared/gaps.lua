-- Gaps of which a client may not have heard: a field `<session>` of the user's gaps, with `<after> <upto> <before> <count>,` for
-- each; `-` is for an id that is not known, -1 for a count. Who has handled `upto`, which was sent behind the gap, has heard of it.
local function noted_gaps(key, session)
  local gaps = {}
  local value = redis.call('HGET', key, session) or ''
  for after, upto, before, count in string.gmatch(value, '(%S+) (%S+) (%S+) (%S+),') do
    gaps[#gaps + 1] = { after = after, upto = upto, before = before, count = tonumber(count) }
  end
  return gaps
end

local function keep_gaps(key, life_ms, session, gaps)
  if #gaps == 0 then
    redis.call('HDEL', key, session)
    return
  end
  while #gaps > 8 do
    local first = table.remove(gaps, 1)
    local both = first.count >= 0 and gaps[1].count >= 0
    gaps[1].after, gaps[1].count = first.after, both and first.count + gaps[1].count or -1
  end
  local words = {}
  for i, gap in ipairs(gaps) do
    words[i] = string.format('%s %s %s %d,', gap.after, gap.upto, gap.before, gap.count)
  end
  redis.call('HSET', key, session, table.concat(words))
  redis.call('PEXPIRE', key, life_ms)
end

local function note_gap(key, life_ms, session, gap)
  local gaps = noted_gaps(key, session)
  gaps[#gaps + 1] = gap
  keep_gaps(key, life_ms, session, gaps)
end
