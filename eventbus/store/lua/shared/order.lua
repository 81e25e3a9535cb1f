-- Entry ids compare by their two numbers, never as strings.
local function order(id)
  local ms, seq = string.match(id, '^(%d+)-(%d+)$')
  return tonumber(ms), tonumber(seq)
end

local function below(a, b)
  local a_ms, a_seq = order(a)
  local b_ms, b_seq = order(b)
  return a_ms < b_ms or (a_ms == b_ms and a_seq < b_seq)
end

-- The answer of XINFO as a table by name; nil when there is no such key.
local function by_name(flat)
  local named = {}
  for i = 1, #flat, 2 do
    named[flat[i]] = flat[i + 1]
  end
  return named
end

local function stream_info(key)
  local flat = redis.pcall('XINFO', 'STREAM', key)
  if flat.err then
    return nil
  end
  return by_name(flat)
end

local function groups_info(key)
  local groups = {}
  local list = redis.pcall('XINFO', 'GROUPS', key)
  if list.err then
    return groups
  end
  for _, flat in ipairs(list) do
    local group = by_name(flat)
    groups[group['name']] = group
  end
  return groups
end
