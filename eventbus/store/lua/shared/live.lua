-- A field of the live hash is `<node> <connection> <stamp_ms>`. One that is older than its life is as good as missing (D16).
local function live_parts(value, now, life_ms)
  if not value then
    return nil
  end
  local space = string.find(value, ' ', 1, true)
  local next_space = space and string.find(value, ' ', space + 1, true)
  local stamp = next_space and tonumber(string.sub(value, next_space + 1))
  if not stamp or now - stamp >= life_ms then
    return nil
  end
  return string.sub(value, 1, space - 1), string.sub(value, space + 1, next_space - 1)
end

-- Whether the session belongs to the caller; returns the node that its field names (D2, D3).
local function held_by(live_key, session, connection, now, life_ms)
  local node, holder = live_parts(redis.call('HGET', live_key, session), now, life_ms)
  return holder == connection and node or nil
end
