#!lua flags=allow-oom
-- The questions of a user that are kept; of those that are not open neither what was asked nor what was answered.
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
  local question = cmsgpack.unpack(all[i + 1])
  if question[STATE] ~= 'open' then
    question[BODY], question[SETTLED] = '', ''
  end
  found[#found + 1] = question_words(all[i], question)
end
return found
