#!lua flags=no-writes,allow-oom
-- Threads of a user of which entries are retained, by their last one, the newest first.
--
-- KEYS
--   stream           the user's stream
--   threads          the user's threads by the time of their last event
-- ARGV
--   before_ms        only those whose last event is not newer; -1 for all
--   before           with before_ms: of those of this very millisecond only the ones whose names are lower
--   count            threads at most
-- Returns
--   {'more' or 'end', thread, last_ms...}

-- As the sorted set orders them: by bytes. Lua's own comparison depends on the server's locale.
local function lower(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then
      return x < y
    end
  end
  return #a < #b
end

-- What is older than the oldest entry has no entry left.
local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if not oldest[1] then
  return { 'end' }
end
local least = string.match(oldest[1][1], '^%d+')
local before_ms, before, count = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local from, most = before_ms < 0 and '+inf' or ARGV[1], 2 * count
local answer, offset = { 'end' }, 0
repeat
  local page = redis.call('ZREVRANGEBYSCORE', KEYS[2], from, least, 'WITHSCORES', 'LIMIT', offset, count + 1)
  for i = 1, #page, 2 do
    if tonumber(page[i + 1]) ~= before_ms or lower(page[i], before) then
      if #answer > most then
        answer[1] = 'more'
        return answer
      end
      answer[#answer + 1] = page[i]
      answer[#answer + 1] = page[i + 1]
    end
  end
  offset = offset + count + 1
until #page <= 2 * count
return answer
