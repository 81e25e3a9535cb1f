-- The first half of what append.lua and append_run.lua have in common, with their first seven KEYS and fourteen ARGV: an event
-- that is known is answered. It is no function, for it is run a million times, and making functions costs.
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

local known = redis.call('HGET', this, field) or redis.call('HGET', other, field)
if known then
  remember(known) -- a write, so that WAIT proves something (D12)
  return { 'duplicate', known }
end
