-- A field of the known hash is `<created_ms> <last_seen_ms> <cursor>`.
local function known_parts(value)
  if not value then
    return nil
  end
  local created, seen, cursor = string.match(value, '^(%d+) (%d+) (%S+)$')
  return tonumber(created), tonumber(seen), cursor
end

local function known_value(created, seen, cursor)
  return string.format('%d %d %s', created, seen, cursor)
end

-- The stream must outlive its sessions: a life below the retention is set to it, a longer one stays (D15).
local function keep_stream(key, retention_ms)
  if redis.call('PTTL', key) < retention_ms - retention_ms / 8 then
    redis.call('PEXPIRE', key, retention_ms)
  end
end
