#!lua flags=allow-oom
-- Writes down what an operator does.
--
-- KEYS
--   audit            what operators did
-- ARGV
--   audit_life_ms    how long it is kept
--   most             about so many are kept
--   what             the record, as JSON
-- Returns
--   its id
--@include life

local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'r', ARGV[3])
prolong(KEYS[1], tonumber(ARGV[1]))
return id
