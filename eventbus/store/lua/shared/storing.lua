-- What append.lua, append_run.lua and answer.lua have in common: an event is stored, once per event id, and its user's nodes are
-- woken. Their first two KEYS and six ARGV are the same; an event has seven KEYS and eight ARGV. All in one function, for what makes a
-- function and what it shares with others is paid at each call.
local retention_ms, dedupe_ms, live_ttl_ms = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local max_entries, max_bytes, policy = tonumber(ARGV[4]), tonumber(ARGV[5]), ARGV[6]
local now = now_ms()
local window = math.floor(now / dedupe_ms)
local window_word = string.format('%d', window)
local is_anything_paused = redis.call('EXISTS', KEYS[2]) == 1

-- How many of each type were stored. Events that are stored together are counted together, and mostly of few types.
local stored_of = {}

local function count_stored()
  for kind, n in pairs(stored_of) do
    count(KEYS[1], 'stored', kind, n)
  end
end

-- Stores the event whose keys and arguments begin there. Where it is not known, `refusal` may say why it is not to be stored.
-- Returns {'stored', entry, nodes woken} | {'duplicate', entry} | {'full', entries, bytes} | {'paused'} | what `refusal` said.
local function store_event(key, argument, refusal)
  local call = redis.call
  local stream, live = KEYS[key], KEYS[key + 1]
  local this, other = KEYS[key + 2 + window % 2], KEYS[key + 3 - window % 2]
  local field, body, user, kind = ARGV[argument], ARGV[argument + 1], ARGV[argument + 2], ARGV[argument + 4]

  -- A bucket is empty when its name comes round again: it lives to the end of the following window. Its life is set in each
  -- window by the first event, which leaves the number of the window in the field `#`: a bucket of this name may be just about to
  -- expire.
  local found = call('HMGET', this, field, '#')
  local is_marked = found[2] == window_word
  local known = found[1] or call('HGET', other, field)
  if known then
    -- Remembered again: a write, so that WAIT proves something (D12).
    call('HSET', this, field, known)
    if not is_marked then
      call('HSET', this, '#', window_word)
      call('PEXPIREAT', this, string.format('%d', (window + 2) * dedupe_ms))
    end
    return { 'duplicate', known }
  end
  local refused = refusal and refusal()
  if refused then
    return refused
  end
  if is_anything_paused and call('HEXISTS', KEYS[2], kind) == 1 then
    return { 'paused' }
  end

  local length = call('XLEN', stream)
  -- Measuring is dear, so it is done for every 64th entry, and where entries of this size would be too much.
  local is_full = length >= max_entries
  if is_full or (length > 0 and (length % 64 == 0 or (length + 1) * #body > max_bytes)) then
--@include room
    if is_full then
      -- A little more than is needed, so that this is not done at each publish.
      local slack = math.max(1, math.min(128, math.floor(max_entries / 16)))
      local least = length - max_entries + 1
      if not make_room(math.max(slack, least), least) then
        return { 'full', length, 0 }
      end
      length = call('XLEN', stream)
    end
    if length > 0 and (length % 64 == 0 or (length + 1) * #body > max_bytes) then
      local usage = redis.pcall('MEMORY', 'USAGE', stream)
      if type(usage) == 'number' and usage + #body > max_bytes then
        local share = math.ceil(length * (usage + #body - max_bytes) / usage)
        local least = math.max(1, math.min(share, length, 128))
        if not make_room(math.max(least, math.min(128, math.floor(length / 16))), least) then
          return { 'full', length, usage }
        end
      end
    end
  end

  local entry
  if length % 16 == 0 then
    -- Looking for what is too old costs as much as storing, so it is done now and then.
    entry = call('XADD', stream, 'MINID', '~', string.format('%d', now - retention_ms), '*', 'd', body)
  else
    entry = call('XADD', stream, '*', 'd', body)
  end
  prolong(stream, retention_ms)
  if is_marked then
    call('HSET', this, field, entry)
  else
    call('HSET', this, field, entry, '#', window_word)
    call('PEXPIREAT', this, string.format('%d', (window + 2) * dedupe_ms))
  end
  stored_of[kind] = (stored_of[kind] or 0) + 1
  local thread, level = ARGV[argument + 5], ARGV[argument + 6]
  if thread ~= '' then
--@include place
    local threads = KEYS[key + 4]
    call('ZADD', threads, place_of(entry), thread)
    prolong(threads, retention_ms)
    if length % 16 == 0 then
      -- What is older than the oldest entry has no entry left.
      local oldest = call('XRANGE', stream, '-', '+', 'COUNT', 1)[1][1]
      call('ZREMRANGEBYSCORE', threads, LEAST_PLACE, '(' .. place_of(oldest))
      call('ZREMRANGEBYSCORE', threads, '-inf', '(' .. string.match(oldest, '^%d+'))
    end
  end
  if level ~= '' then
    call('ZADD', KEYS[key + 5], now + ARGV[argument + 7], 'demand ' .. user .. ' ' .. entry .. ' ' .. level)
  end

  local woken, told = 0, {}
  for _, value in ipairs(call('HVALS', live)) do
    local node = live_parts(value, now, live_ttl_ms)
    if node and not told[node] then
      told[node] = true
      woken = woken + 1
      call('SPUBLISH', ARGV[argument + 3] .. node, user)
    end
  end
  if woken == 0 then
    -- Nobody is there who would say that it waits: a node does for the live ones, with each heartbeat.
    if call('ZADD', KEYS[key + 6], 'NX', string.match(entry, '^%d+'), user) == 1 then
      prolong(KEYS[key + 6], 2 * retention_ms)
    end
  end
  return { 'stored', entry, woken }
end
