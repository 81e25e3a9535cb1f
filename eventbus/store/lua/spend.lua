#!lua flags=allow-oom
-- Takes what a caller asks for out of its allowances: of each, or of none.
--
-- KEYS
--   allowances       number of the allowance -> `<level> <stamp_ms>`, the level in thousandths; a missing one is full
-- ARGV
--   longest_ms       longest life of the key
--   rate...          repeated: what an allowance grows by in a second; at least 1
--   capacity...      the most that is in it
--   cost...          what is taken from it
-- Returns
--   0 when it was taken; else the milliseconds until it can be, and nothing was
--@include clock

local key = KEYS[1]
local now = now_ms()
local wait_ms, full_ms, levels = 0, 1, {}
for i = 2, #ARGV, 3 do
  local rate, capacity, cost = tonumber(ARGV[i]), tonumber(ARGV[i + 1]) * 1000, tonumber(ARGV[i + 2]) * 1000
  local number = #levels / 2 + 1
  local level = capacity
  local stored = redis.call('HGET', key, number)
  if stored then
    local had, stamp = string.match(stored, '^(%d+) (%d+)$')
    -- One a second is one thousandth a millisecond. A clock that went back gives nothing.
    level = math.min(capacity, tonumber(had) + math.max(0, now - tonumber(stamp)) * rate)
  end
  -- More than the capacity is never there: it is waited for as the capacity, and taken down to nothing.
  local missing = math.min(cost, capacity) - level
  wait_ms = math.max(wait_ms, math.ceil(missing / rate))
  level = math.max(0, level - cost)
  full_ms = math.max(full_ms, math.ceil((capacity - level) / rate))
  levels[#levels + 1] = number
  levels[#levels + 1] = string.format('%d %d', level, now)
end
if wait_ms > 0 then
  return wait_ms
end
redis.call('HSET', key, unpack(levels))
-- Once all are full again, the key says nothing.
redis.call('PEXPIRE', key, math.min(full_ms, tonumber(ARGV[1])))
return 0
