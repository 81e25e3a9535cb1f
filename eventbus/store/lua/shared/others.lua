-- The part of an ack that releases `shared` for the user's other sessions, as far as they have read it (D19); what they have not
-- read is told to them when they do. Their nodes hear of it.
local now = now_ms()
for name, group in pairs(groups_info(stream)) do
  local theirs = {}
  if name ~= session and group['pending'] > 0 then
    theirs = released(stream, name, shared)
  end
  if #theirs > 0 then
    tally(counts, 'released', theirs, known)
    record(records, retention_ms, 'released', name, theirs)
    local node = live_parts(redis.call('HGET', live, name), now, live_ttl_ms)
    if node then
      redis.call('SPUBLISH', channel .. node, '=' .. name .. ' ' .. user .. ' ' .. table.concat(theirs, ','))
    end
  end
end
prolong(any_acked, retention_ms)
-- What the stream does not hold any more nobody reads; looked for now and then.
if redis.call('SCARD', any_acked) % 1024 < #shared then
  local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
  for _, id in ipairs(redis.call('SMEMBERS', any_acked)) do
    if not first or below(id, first[1]) then
      redis.call('SREM', any_acked, id)
    end
  end
end
