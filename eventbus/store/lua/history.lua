#!lua flags=allow-oom
-- Retained entries of a user, the id of the newest one ever, and the epoch.
--
-- KEYS
--   stream           the user's stream
--   epoch            the partition's epoch
-- ARGV
--   fresh_epoch      a random word: the epoch when there is none
--   after            entries after this id
--   count            entries at most; 0 for none
-- Returns
--   {epoch, tail, 'more' or 'end', {id, {'d', body}}...}
--@include order

redis.call('SET', KEYS[2], ARGV[1], 'NX')
local count = tonumber(ARGV[3])
local info = stream_info(KEYS[1])
local answer = { redis.call('GET', KEYS[2]), info and info['last-generated-id'] or '0-0', 'end' }
if count > 0 and info then
  local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[2], '+', 'COUNT', count + 1)
  if #entries > count then
    answer[3] = 'more'
  end
  for i = 1, math.min(count, #entries) do
    answer[#answer + 1] = entries[i]
  end
end
return answer
