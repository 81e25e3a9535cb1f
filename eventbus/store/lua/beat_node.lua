#!lua flags=allow-oom
-- Writes what a node tells of itself, and forgets the nodes that have been silent for too long.
--
-- KEYS
--   nodes            all nodes
-- ARGV
--   node             the node's name
--   record           what it tells, as JSON
--   life_ms          silence after which a node is no longer listed
-- Returns
--   how many nodes are left
--@include clock

local now, life_ms = now_ms(), tonumber(ARGV[3])
redis.call('HSET', KEYS[1], ARGV[1], string.format('%d %s', now, ARGV[2]))
redis.call('PEXPIRE', KEYS[1], life_ms)
local fields, left = redis.call('HGETALL', KEYS[1]), 0
for i = 1, #fields, 2 do
  local stamp = tonumber(string.match(fields[i + 1], '^(%d+) '))
  if not stamp or now - stamp >= life_ms then
    redis.call('HDEL', KEYS[1], fields[i])
  else
    left = left + 1
  end
end
return left
