#!lua flags=no-writes,allow-oom
-- What was revoked of late.
--
-- KEYS
--   revoked_records  subject -> `<number> <revoked_ms> <until_ms> <record>`; `#epoch` and `#number` are those of the list
--   revoked_order    the subjects by number
-- ARGV
--   epoch            of the list that the caller has read
--   number           up to where
--   count            so many at most
-- Returns
--   the epoch, the number of the newest revocation, and the records after the caller's number; from the beginning in another epoch

local marks = redis.call('HMGET', KEYS[1], '#epoch', '#number')
local after, newest = tonumber(ARGV[2]), tonumber(marks[2] or 0)
if marks[1] ~= ARGV[1] then
  after = 0
end
local answer = { marks[1] or '', newest }
if newest > after then
  local from = string.format('(%d', after)
  for _, subject in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], from, '+inf', 'LIMIT', 0, tonumber(ARGV[3]))) do
    answer[#answer + 1] = redis.call('HGET', KEYS[1], subject)
  end
end
return answer
