-- The part of an ack that came through another door than the session's own connection: the node that has the session in flight
-- hears of it (D11).
local node = live_parts(redis.call('HGET', live, session), now_ms(), live_ttl_ms)
if node then
  redis.call('SPUBLISH', channel .. node, '*' .. session .. ' ' .. user .. ' ' .. table.concat(gone, ','))
end
