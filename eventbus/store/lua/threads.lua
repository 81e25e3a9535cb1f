#!lua flags=no-writes,allow-oom
-- Threads of a user of which entries are retained, by their last one, the newest first.
--
-- KEYS
--   stream           the user's stream
--   threads          the user's threads by the place of their last event
-- ARGV
--   before_place     only those whose last event is not at a higher place; -1 for all
--   before           with before_place: of those of this very place only the ones whose names are lower
--   count            threads at most
-- Returns
--   {'more' or 'end', thread, place...}

--@include place

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

local oldest = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)
if not oldest[1] then
  return { 'end' }
end
local before_place, before, count = tonumber(ARGV[1]), ARGV[2], tonumber(ARGV[3])
local from, most = before_place < 0 and '+inf' or ARGV[1], 2 * count
-- What is older than the oldest entry has no entry left. Scores in milliseconds are lower than each place, and told last.
local ranges = { { '(' .. LEAST_PLACE, string.match(oldest[1][1], '^%d+') } }
if before_place < 0 or before_place >= tonumber(LEAST_PLACE) then
  ranges = { { from, place_of(oldest[1][1]) }, ranges[1] }
else
  ranges[1][1] = from
end
local answer = { 'end' }
for _, range in ipairs(ranges) do
  local offset = 0
  repeat
    local page = redis.call('ZREVRANGEBYSCORE', KEYS[2], range[1], range[2], 'WITHSCORES', 'LIMIT', offset, count + 1)
    for i = 1, #page, 2 do
      local place = tonumber(page[i + 1])
      if place ~= before_place or lower(page[i], before) then
        if #answer > most then
          answer[1] = 'more'
          return answer
        end
        answer[#answer + 1] = page[i]
        answer[#answer + 1] = string.format('%.0f', place)
      end
    end
    offset = offset + count + 1
  until #page <= 2 * count
end
return answer
