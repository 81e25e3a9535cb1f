-- Counts entries of a type that reached a state: a field `<state>:<type>` of the partition's counts. What has no type that is
-- known, and the types beyond the first 500 fields, count as `other`. The counts live for 30 days from about the last one that
-- is written: looking at the life costs as much as counting, so that is done at a new field and at every sixteenth.
local function count(key, state, type, n)
  if n == 0 then
    return
  end
  local field = state .. ':' .. (type ~= '' and type or 'other')
  local total = redis.call('HINCRBY', key, field, n)
  if total == n and redis.call('HLEN', key) > 500 and type ~= '' then
    redis.call('HDEL', key, field)
    redis.call('HINCRBY', key, state .. ':other', n)
  end
  if total == n or total % 16 < n then
    prolong(key, 2592000000)
  end
end
