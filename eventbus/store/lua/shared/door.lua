-- The part of an ack that came through another door than the session's own connection: the node that has the session in flight
-- hears of it (D11).
local node = live_parts(redis.call('HGET', KEYS[3], ARGV[1]), now_ms(), tonumber(ARGV[7]))
if node then
  redis.call('SPUBLISH', ARGV[6] .. node, '*' .. ARGV[1] .. ' ' .. ARGV[5] .. ' ' .. table.concat(gone, ','))
end
