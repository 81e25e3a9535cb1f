-- What append.lua, append_run.lua and answer.lua have in common: an event is stored, once per event id, and its user's nodes are
-- woken. They have their first nine KEYS and fourteen ARGV in common.
local stream, live = KEYS[1], KEYS[2]
local field, body, user = ARGV[1], ARGV[2], ARGV[3]
local retention_ms, dedupe_ms, live_ttl_ms = tonumber(ARGV[5]), tonumber(ARGV[6]), tonumber(ARGV[7])
local max_entries, max_bytes = tonumber(ARGV[8]), tonumber(ARGV[9])
local now = now_ms()
local window = math.floor(now / dedupe_ms)
local this, other = KEYS[3 + window % 2], KEYS[4 - window % 2]

-- A bucket is empty when its name comes round again: it lives to the end of the following window. Its life is set by the first
-- field, and during the first second of a window, when the bucket of this name may be just about to expire.
local function remember(entry)
  redis.call('HSET', this, field, entry)
  if now - window * dedupe_ms < 1000 or redis.call('HLEN', this) == 1 then
    redis.call('PEXPIREAT', this, string.format('%d', (window + 2) * dedupe_ms))
  end
end

-- The entry of a known event id. Remembered again: a write, so that WAIT proves something (D12).
local function known_entry()
  local known = redis.call('HGET', this, field) or redis.call('HGET', other, field)
  if known then
    remember(known)
  end
  return known
end

--@include place

-- Stores the event. Returns its entry id and how many nodes were told; nil and the answer when there is no room.
local function store_event()
  if redis.call('HEXISTS', KEYS[9], ARGV[11]) == 1 then
    return nil, { 'paused' }
  end
  local length = redis.call('XLEN', stream)
  -- Measuring is dear, so it is done for every 64th entry, and where entries of this size would be too much.
  local is_full = length >= max_entries
  if is_full or (length > 0 and (length % 64 == 0 or (length + 1) * #body > max_bytes)) then
    -- Included here, for a function that is made and not called costs as much as a look into a hash.
--@include room
    if is_full then
      -- A little more than is needed, so that this is not done at each publish.
      local slack = math.max(1, math.min(128, math.floor(max_entries / 16)))
      local least = length - max_entries + 1
      if not make_room(math.max(slack, least), least) then
        return nil, { 'full', length, 0 }
      end
      length = redis.call('XLEN', stream)
    end
    if length > 0 and (length % 64 == 0 or (length + 1) * #body > max_bytes) then
      local usage = redis.pcall('MEMORY', 'USAGE', stream)
      if type(usage) == 'number' and usage + #body > max_bytes then
        local share = math.ceil(length * (usage + #body - max_bytes) / usage)
        local least = math.max(1, math.min(share, length, 128))
        if not make_room(math.max(least, math.min(128, math.floor(length / 16))), least) then
          return nil, { 'full', length, usage }
        end
      end
    end
  end

  local entry
  if length % 16 == 0 then
    -- Looking for what is too old costs as much as storing, so it is done now and then.
    entry = redis.call('XADD', stream, 'MINID', '~', string.format('%d', now - retention_ms), '*', 'd', body)
  else
    entry = redis.call('XADD', stream, '*', 'd', body)
  end
  prolong(stream, retention_ms)
  remember(entry)
  count(KEYS[7], 'stored', ARGV[11], 1)
  if ARGV[12] ~= '' then
    redis.call('ZADD', KEYS[5], place_of(entry), ARGV[12])
    prolong(KEYS[5], retention_ms)
    if length % 16 == 0 then
      -- What is older than the oldest entry has no entry left.
      local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
      redis.call('ZREMRANGEBYSCORE', KEYS[5], LEAST_PLACE, '(' .. place_of(oldest))
      redis.call('ZREMRANGEBYSCORE', KEYS[5], '-inf', '(' .. string.match(oldest, '^%d+'))
    end
  end
  if ARGV[13] ~= '' then
    redis.call('ZADD', KEYS[6], now + ARGV[14], 'demand ' .. user .. ' ' .. entry .. ' ' .. ARGV[13])
  end

  local woken = 0
  local told = {}
  for _, value in ipairs(redis.call('HVALS', live)) do
    local node = live_parts(value, now, live_ttl_ms)
    if node and not told[node] then
      told[node] = true
      woken = woken + 1
      redis.call('SPUBLISH', ARGV[4] .. node, user)
    end
  end
  if woken == 0 then
    -- Nobody is there who would say that it waits: a node does for the live ones, with each heartbeat.
    if redis.call('ZADD', KEYS[8], 'NX', string.match(entry, '^%d+'), user) == 1 then
      prolong(KEYS[8], 2 * retention_ms)
    end
  end
  return entry, woken
end
