#!lua flags=no-writes,allow-oom
-- Which sessions of a user are live.
--
-- KEYS
--   live             the user's live sessions
-- ARGV
--   live_ttl_ms      life of a live field
-- Returns
--   {now_ms, session, node, stamp_ms...}
--@include clock
--@include live

local now, fields = now_ms(), redis.call('HGETALL', KEYS[1])
local answer = { now }
for i = 1, #fields, 2 do
  local node = string.sub(fields[i], 1, 1) ~= '#' and live_parts(fields[i + 1], now, tonumber(ARGV[1]))
  if node then
    answer[#answer + 1] = fields[i]
    answer[#answer + 1] = node
    answer[#answer + 1] = tonumber(string.match(fields[i + 1], '(%d+)$'))
  end
end
return answer
