-- Who has something waiting: user -> the time of the oldest entry that waits; below zero, minus the time when it was last seen that
-- nothing does while a session is live. What is below zero and old was left behind by a node that died: who looks looks again.

-- The time of the oldest entry that is pending, or that a group has not read; nil when there is none.
local function oldest_waiting(stream, groups)
  local oldest, newest = nil, nil
  for name, group in pairs(groups) do
    local id = nil
    if group['pending'] > 0 then
      id = redis.call('XPENDING', stream, name)[2]
    else
      if newest == nil then
        local last = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
        newest = last and last[1] or false
      end
      local position = group['last-delivered-id']
      if newest and newest ~= position and below(position, newest) then
        id = redis.call('XRANGE', stream, '(' .. position, '+', 'COUNT', 1)[1][1]
      end
    end
    local ms = id and order(id)
    if ms and (not oldest or ms < oldest) then
      oldest = ms
    end
  end
  return oldest
end

-- Writes down whether something waits for a user for at least `young_ms`. Returns since when, nil when nothing does.
local function note_waiting(index, user, oldest, is_live, now, retention_ms, young_ms)
  local noted = tonumber(redis.call('ZSCORE', index, user) or nil)
  -- What is noted was late before, however young it is.
  if oldest and now - oldest < young_ms and not (noted and noted > 0) then
    oldest = nil
  end
  local score = oldest
  if not oldest and is_live then
    -- Once a minute: that often those who are well cost a write.
    score = noted and noted < 0 and now + noted < 60000 and noted or -now
  end
  if not score then
    if noted then
      redis.call('ZREM', index, user)
    end
  elseif score ~= noted then
    redis.call('ZADD', index, string.format('%d', score), user)
    prolong(index, 2 * retention_ms)
    -- Whose events are all gone has nothing that waits.
    redis.call('ZREMRANGEBYSCORE', index, 1, string.format('(%d', now - 2 * retention_ms))
    redis.call('ZREMRANGEBYSCORE', index, string.format('(%d', 2 * retention_ms - now), -1)
  end
  return oldest
end
