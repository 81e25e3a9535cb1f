#!lua flags=allow-oom
-- Puts a dead letter back among the pending entries of its session, as delivered once; the letter goes. All of it or nothing.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   dead             the partition's dead letters
--   waiting          users for whom something waits
-- ARGV
--   letter           the dead letter's own id
--   id               the entry id
--   user             the user id
--   session          the session id
--   channel          what the shard channels of the partition begin with
--   live_ttl_ms      life of a live field
--   retention_ms     life of the stream
-- Returns
--   'put_back' | 'no_letter' | 'no_session' | 'not_stored'
--@include clock
--@include live
--@include order
--@include life

local stream, session, id = KEYS[1], ARGV[4], ARGV[2]
if #redis.call('XRANGE', KEYS[3], ARGV[1], ARGV[1]) == 0 then
  return 'no_letter'
elseif #redis.call('XRANGE', stream, id, id) == 0 then
  return 'not_stored'
end
local claimed = redis.pcall('XCLAIM', stream, session, 'c', 0, id, 'RETRYCOUNT', 1, 'FORCE', 'JUSTID')
if claimed.err then
  return string.find(claimed.err, '^NOGROUP') and 'no_session' or claimed
end
redis.call('XDEL', KEYS[3], ARGV[1])
local noted = tonumber(redis.call('ZSCORE', KEYS[4], ARGV[3]) or nil)
local ms = order(id)
if not noted or noted < 0 or noted > ms then
  redis.call('ZADD', KEYS[4], string.format('%d', ms), ARGV[3])
  prolong(KEYS[4], 2 * tonumber(ARGV[7]))
end
local node = live_parts(redis.call('HGET', KEYS[2], session), now_ms(), tonumber(ARGV[6]))
if node then
  redis.call('SPUBLISH', ARGV[5] .. node, '%back ' .. session .. ' ' .. ARGV[3])
end
return 'put_back'
