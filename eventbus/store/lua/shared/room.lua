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
    if policy == 'reject' then
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
