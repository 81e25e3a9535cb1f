#!lua flags=allow-oom
-- Writes down which event asks a question.
--
-- KEYS
--   questions        the user's questions
-- ARGV
--   run_id           the run that asks
--   question         its name in the run
--   id               the entry id of the event
-- Returns
--   'known' | 'unknown'
--@include question

local field = ARGV[1] .. ' ' .. ARGV[2]
local question = question_at(KEYS[1], field)
if not question then
  return 'unknown'
end
question[ENTRY] = ARGV[3]
keep_question(KEYS[1], field, question)
return 'known'
