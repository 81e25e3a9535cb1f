-- The part of an ack that releases `shared` for the user's other sessions, as far as they have read it (D19); what they have not
-- read is told to them when they do. Their nodes hear of it.
local now, live_ttl_ms, retention_ms = now_ms(), tonumber(ARGV[7]), tonumber(ARGV[2])
for name, group in pairs(groups_info(KEYS[1])) do
  local theirs = {}
  if name ~= ARGV[1] and group['pending'] > 0 then
    theirs = released(KEYS[1], name, shared)
  end
  if #theirs > 0 then
    tally(KEYS[5], 'released', theirs, known)
    record(KEYS[2], retention_ms, 'released', name, theirs)
    local node = live_parts(redis.call('HGET', KEYS[3], name), now, live_ttl_ms)
    if node then
      redis.call('SPUBLISH', ARGV[6] .. node, '=' .. name .. ' ' .. ARGV[5] .. ' ' .. table.concat(theirs, ','))
    end
  end
end
prolong(KEYS[4], retention_ms)
-- What the stream does not hold any more nobody reads; looked for now and then.
if redis.call('SCARD', KEYS[4]) % 1024 < #shared then
  local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  for _, id in ipairs(redis.call('SMEMBERS', KEYS[4])) do
    if not first or below(id, first[1]) then
      redis.call('SREM', KEYS[4], id)
    end
  end
end
