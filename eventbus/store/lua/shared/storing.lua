-- What append.lua, append_run.lua and answer.lua have in common: an event is stored, once per event id, and its user's nodes are
-- woken. They have their first seven KEYS and fourteen ARGV in common.
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

-- Takes `surplus` of the oldest entries away, first only such that nobody needs. Returns whether `least` of them are gone.
local function make_room(surplus, least)
--@include order
  -- The lowest id that some group still needs; nil when no group needs anything (D18). What is pending and trimmed already
  -- is needed by nobody: whoever reads it is told that it is gone.
  local function lowest_needed(first)
    local lowest = nil
    for name, group in pairs(groups_info(stream)) do
      local pending = group['pending'] > 0 and redis.call('XPENDING', stream, name, first, '+', 1)[1]
      local id = pending and pending[1]
      if not id then
        local following = redis.call('XRANGE', stream, '(' .. group['last-delivered-id'], '+', 'COUNT', 1)
        id = following[1] and following[1][1]
      end
      if id and (not lowest or below(id, lowest)) then
        lowest = id
      end
    end
    return lowest
  end

  local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', surplus + 1)
  local needed = oldest[1] and lowest_needed(oldest[1][1])
  local free = 0
  while free < surplus and oldest[free + 1] and (not needed or below(oldest[free + 1][1], needed)) do
    free = free + 1
  end
  if free < least then
    if ARGV[10] == 'reject' then
      return false
    end
    -- Live sessions must look for the hole before they read on; those that are away look when they attach (D7).
    free = math.min(surplus, #oldest)
    if oldest[free] then
      redis.call('HSET', live, '#', oldest[free][1])
      if redis.call('PTTL', live) < 0 then
        redis.call('PEXPIRE', live, live_ttl_ms)
      end
    end
  end
  if free > 0 then
    redis.call('XTRIM', stream, 'MAXLEN', '=', redis.call('XLEN', stream) - free)
  end
  return true
end

-- Stores the event. Returns its entry id and how many nodes were told; nil and the answer when there is no room.
local function store_event()
  local length = redis.call('XLEN', stream)
  if length >= max_entries then
    -- A little more than is needed, so that this is not done at each publish.
    local slack = math.max(1, math.min(128, math.floor(max_entries / 16)))
    local least = length - max_entries + 1
    if not make_room(math.max(slack, least), least) then
      return nil, { 'full', length, 0 }
    end
    length = redis.call('XLEN', stream)
  end
  -- Measuring is dear, so it is done for every 64th entry, and where entries of this size would be too much.
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
    redis.call('ZADD', KEYS[5], string.match(entry, '^%d+'), ARGV[12])
    prolong(KEYS[5], retention_ms)
    if length % 16 == 0 then
      -- What is older than the oldest entry has no entry left.
      local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
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
  return entry, woken
end
