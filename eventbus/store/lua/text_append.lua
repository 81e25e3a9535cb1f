#!lua
-- Stores the next piece of a token stream, in order and once, and tells the nodes that have a live session of the user.
-- Not allowed when memory is full: that is the publisher's to wait for.
--
-- KEYS
--   text             the run's pieces
--   texts            the user's open streams
--   live             the user's live sessions
--   run              the run's hash
-- ARGV
--   user             the user id
--   run_id           the run
--   stream           the name of the token stream
--   thread           the thread of the run, empty for none
--   channel          what the shard channels of the partition begin with
--   retention_ms     life of the pieces while a stream is open, and of the index
--   text_life_ms     pieces older than this go when a run that has no stream open begins one
--   live_ttl_ms      life of a live field
--   offset           where the piece begins, in code points
--   points           its length in code points
--   piece            the text
--   mark             more or last
-- Returns
--   {'stored' or 'duplicate' or 'elsewhere' or 'ended' or 'run_closed', length of the stream in code points}
--@include clock
--@include life
--@include live
--@include texts

local text, open = KEYS[1], KEYS[2]
local user, run, name = ARGV[1], ARGV[2], ARGV[3]
local offset, points, last = tonumber(ARGV[9]), tonumber(ARGV[10]), ARGV[12] == 'last'
local now = now_ms()

local length, _, state = text_parts(redis.call('HGET', open, run .. ' ' .. name))
local known = length ~= nil
length = length or 0

if state == 'ended' then
  return { offset + points <= length and 'duplicate' or 'ended', length }
end
if known and offset + points <= length and not last then
  return { 'duplicate', length }
end
if offset ~= length then
  return { 'elsewhere', length }
end
if redis.call('HGET', KEYS[4], 'state') == 'completed' then
  return { 'run_closed', length }
end
if points == 0 and not last then
  return { 'duplicate', length }
end
if not known and not is_streaming(open, run) then
  redis.call('XTRIM', text, 'MINID', string.format('%d', now - tonumber(ARGV[7])))
end

local words = { 's', name, 'o', ARGV[9], 'd', ARGV[11] }
if last then
  words[#words + 1] = 'f'
  words[#words + 1] = '1'
end
if offset == 0 and ARGV[4] ~= '' then
  words[#words + 1] = 'h'
  words[#words + 1] = ARGV[4]
end
local entry = redis.call('XADD', text, '*', unpack(words))
length = length + points
redis.call('HSET', open, run .. ' ' .. name, text_value(length, entry, last and 'ended' or 'open'))
prolong(text, tonumber(ARGV[6]))
prolong(open, tonumber(ARGV[6]))
tell_of_text(KEYS[3], ARGV[5], user, run, now, tonumber(ARGV[8]))
return { 'stored', length }
