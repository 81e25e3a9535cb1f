-- A field `<run> <stream>` of the index of open streams is `<length> <entry> <open or ended>`.
local function text_parts(value)
  local length, entry, state = string.match(value or '', '^(%d+) (%S+) (%a+)$')
  return tonumber(length), entry, state
end

local function text_value(length, entry, state)
  return string.format('%d %s %s', length, entry, state)
end

-- The names of the run's streams in the index.
local function streams_of(open, run)
  local found = {}
  local prefix = run .. ' '
  for _, field in ipairs(redis.call('HKEYS', open)) do
    if string.sub(field, 1, #prefix) == prefix then
      found[#found + 1] = string.sub(field, #prefix + 1)
    end
  end
  return found
end

local function is_streaming(open, run)
  return #streams_of(open, run) > 0
end

-- One message to each node that has a live session of the user.
local function tell_of_text(live, channel, user, run, now, live_ttl_ms)
  local told = {}
  for _, value in ipairs(redis.call('HVALS', live)) do
    local node = live_parts(value, now, live_ttl_ms)
    if node and not told[node] then
      told[node] = true
      redis.call('SPUBLISH', channel .. node, '~' .. run .. ' ' .. user)
    end
  end
end
