#!lua flags=allow-oom
-- Takes entries off a session for an operator, whoever has it: released, and only if that released them recorded or kept as dead
-- letters. The node that has them in flight is told (D11), first that they are dead letters, for the client hears of that (D21).
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   records          the user's confirmations
--   counts           the partition's counts
--   dead             the partition's dead letters
-- ARGV
--   how              skipped or dead
--   user             the user id
--   session          the session id
--   channel          what the shard channels of the partition begin with
--   live_ttl_ms      life of a live field
--   retention_ms     life of the records
--   letter_life_ms   life of a dead letter
--   reason           why it is given up
--   id...            repeated: an entry id
-- Returns
--   the ids that were pending
--@include clock
--@include live
--@include life
--@include counts
--@include records
--@include facts
--@include tally

local stream, live, records, counts = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local how, user, session, channel, live_ttl_ms = ARGV[1], ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
local now = now_ms()
local node = live_parts(redis.call('HGET', live, session), now, live_ttl_ms)
local gone, known = {}, {}
for i = 9, #ARGV do
  local id = ARGV[i]
  local waiting = redis.pcall('XPENDING', stream, session, id, id, 1)
  if waiting.err and not string.find(waiting.err, '^NOGROUP') then
    return waiting
  end
  if not waiting.err and waiting[1] and redis.call('XACK', stream, session, id) == 1 then
    gone[#gone + 1] = id
    known[id] = stored_facts(stream, id)
    if how == 'dead' then
      local entry = redis.call('XRANGE', stream, id, id)[1]
      local body = entry and entry[2][2] or ''
      local fine, event = pcall(cmsgpack.unpack, body)
      redis.call(
        'XADD', KEYS[5], 'MINID', '~', string.format('%d', now - ARGV[7]), '*', 'user', user, 'session', session, 'entry', id,
        'event', fine and type(event) == 'table' and event.id or '', 'type', known[id].type, 'reason', ARGV[8],
        'attempts', waiting[1][4], 'node', node or '', 'body', body
      )
      redis.call('PEXPIRE', KEYS[5], ARGV[7])
    end
  end
end
if how == 'dead' then
  tally(counts, 'dead_lettered', gone, known)
else
  tally(counts, 'skipped', gone, known)
  record(records, tonumber(ARGV[6]), 'skipped', session, gone)
end
if node and #gone > 0 then
  if how == 'dead' then
    redis.call('SPUBLISH', channel .. node, '%dead ' .. session .. ' ' .. user .. ' ' .. table.concat(gone, ','))
  end
  redis.call('SPUBLISH', channel .. node, '*' .. session .. ' ' .. user .. ' ' .. table.concat(gone, ','))
end
return gone
