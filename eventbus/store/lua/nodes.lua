#!lua flags=no-writes,allow-oom
-- The nodes that told of themselves of late.
--
-- KEYS
--   nodes            all nodes
-- ARGV
--   life_ms          silence after which a node is no longer listed
-- Returns
--   for each node its record, as JSON
--@include clock

local now, life_ms = now_ms(), tonumber(ARGV[1])
local answer = {}
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local stamp, record = string.match(fields[i + 1], '^(%d+) (.*)$')
  if stamp and now - tonumber(stamp) < life_ms then
    answer[#answer + 1] = record
  end
end
return answer
