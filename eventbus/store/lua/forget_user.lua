#!lua flags=allow-oom
-- Takes what is kept of a user among what the users of a partition share, a part of it with each call.
--
-- KEYS
--   dead             the partition's dead letters
--   operators        the events for the operators
--   due              what the partition watches
--   waiting          users for whom something waits
-- ARGV
--   user             the user id
--   after_letter     letters after this id
--   after_event      events for operators after this id
--   page             so many of each are looked at
-- Returns
--   {how many were taken, the last letter or '', the last event or ''}; an empty word means that none follow

local user, most, taken = ARGV[1], tonumber(ARGV[4]), 0
local function forget_in(key, after)
  local page = redis.call('XRANGE', key, '(' .. after, '+', 'COUNT', most)
  for _, item in ipairs(page) do
    for i = 1, #item[2], 2 do
      if item[2][i] == 'user' and item[2][i + 1] == user then
        taken = taken + redis.call('XDEL', key, item[1])
      end
    end
  end
  return #page == most and page[#page][1] or ''
end
local letter, event = forget_in(KEYS[1], ARGV[2]), forget_in(KEYS[2], ARGV[3])
if letter == '' and event == '' then
  for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
    if string.match(member, '^%a+ (%S+)') == user and string.sub(member, 1, 8) ~= 'webhook ' then
      taken = taken + redis.call('ZREM', KEYS[3], member)
    end
  end
  taken = taken + redis.call('ZREM', KEYS[4], user)
end
return { taken, letter, event }
