#!lua
-- Opens a question, once for each run and name; one that is known stays as it is.
-- Not allowed when memory is full: that is the agent's to wait for.
--
-- KEYS
--   questions        the user's questions
-- ARGV
--   run_id           the run that asks
--   question         its name in the run
--   asked            what is asked, as MessagePack
--   timeout_ms       until when it takes answers, from now; 0: for ever
--   retention_ms     life of the questions
--   max_questions    most questions that are kept
--   option...        repeated: what may be answered
-- Returns
--   {Redis's clock, the question} | {Redis's clock} when too many are open
--@include clock
--@include life
--@include question

local key, field = KEYS[1], ARGV[1] .. ' ' .. ARGV[2]
local timeout_ms, retention_ms, max_questions = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local now = now_ms()
local question = question_at(key, field)
if question then
  prolong(key, retention_ms)
  return { now, question_words(field, question) }
end

-- At the cap those go that take no answer any more: first what is older than the retention, then whatever is settled or late.
if redis.call('HLEN', key) >= max_questions then
  local all = redis.call('HGETALL', key)
  for _, oldest_ms in ipairs({ now - retention_ms, now }) do
    for i = 1, #all, 2 do
      local other = cmsgpack.unpack(all[i + 1])
      local takes = other[STATE] == 'open' and (other[DEADLINE] == 0 or now < other[DEADLINE])
      if not takes and other[CREATED] <= oldest_ms then
        redis.call('HDEL', key, all[i])
      end
    end
    if redis.call('HLEN', key) < max_questions then
      break
    end
  end
  if redis.call('HLEN', key) >= max_questions then
    return { now }
  end
end

local options = {}
for i = 7, #ARGV do
  options[#options + 1] = ARGV[i]
end
question = { now, timeout_ms == 0 and 0 or now + timeout_ms, 'open', '', ARGV[3], '', options }
keep_question(key, field, question)
prolong(key, retention_ms)
return { now, question_words(field, question) }
