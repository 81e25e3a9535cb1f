-- A question is an array: when it was asked, until when it takes answers (0: for ever), its state, the event that asks it, what was
-- asked, how it was settled, what may be answered. Only Redis reads and writes times.
local CREATED, DEADLINE, STATE, ENTRY, BODY, SETTLED, OPTIONS = 1, 2, 3, 4, 5, 6, 7

local function question_at(key, field)
  local raw = redis.call('HGET', key, field)
  return raw and cmsgpack.unpack(raw)
end

local function keep_question(key, field, question)
  redis.call('HSET', key, field, cmsgpack.pack(question))
end

-- What an answer of Redis has of a question.
local function question_words(field, question)
  return { field, question[CREATED], question[DEADLINE], question[STATE], question[ENTRY], question[BODY], question[SETTLED] }
end
