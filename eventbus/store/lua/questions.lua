#!lua flags=allow-oom
-- The questions of a user that are kept.
--
-- KEYS
--   questions        the user's questions
-- ARGV
-- Returns
--   {Redis's clock, {field, created, deadline, state, entry, asked, settled}, ...}
--@include clock
--@include question

local found = { now_ms() }
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  found[#found + 1] = question_words(all[i], cmsgpack.unpack(all[i + 1]))
end
return found
