#!lua flags=allow-oom
-- Reads a user's commands for a group: first those that were read and not acked in time, then new ones. What is not for the group
-- is acked in it; what was read too often is given up.
--
-- KEYS
--   commands         the user's commands
--   dead             the partition's dead letters
-- ARGV
--   user             the user id
--   group            the consumer group; made at the oldest command when it is not there
--   run_id           only commands for this run; empty: only those for none
--   count            most commands to read
--   idle_ms          what was read so long ago comes again
--   max_deliveries   what was read so often is given up
--   retention_ms     life of the commands
--   life_ms          life of a dead letter
-- Returns
--   a list of {id, how often it was read, {field, value, ...}}
--@include clock
--@include life
--@include inbound

local key, group, run_id = KEYS[1], ARGV[2], ARGV[3]
local count, max_deliveries = tonumber(ARGV[4]), tonumber(ARGV[6])
local taken = {}

local function give_up(id, fields, attempts)
  local life_ms = tonumber(ARGV[8])
  redis.call(
    'XADD', KEYS[2], 'MINID', '~', string.format('%d', now_ms() - life_ms), '*', 'user', ARGV[1], 'session', fields['session'],
    'entry', id, 'event', 'command:' .. id, 'type', fields['type'], 'reason', 'command_not_acked', 'attempts', attempts, 'node',
    'agent', 'body', fields['data']
  )
  redis.call('PEXPIRE', KEYS[2], life_ms)
end

local waiting = redis.pcall('XPENDING', key, group, 'IDLE', ARGV[5], '-', '+', count)
if waiting.err then
  redis.call('XGROUP', 'CREATE', key, group, '0-0', 'MKSTREAM')
  prolong(key, tonumber(ARGV[7]))
  waiting = {}
end
for _, item in ipairs(waiting) do
  local id, attempts = item[1], item[4]
  local entry = redis.call('XRANGE', key, id, id)[1]
  if not entry then
    redis.call('XACK', key, group, id) -- trimmed: its time is over
  elseif attempts >= max_deliveries then
    give_up(id, named(entry[2]), attempts)
    redis.call('XACK', key, group, id)
  else
    redis.call('XCLAIM', key, group, 'c', 0, id, 'RETRYCOUNT', attempts + 1, 'JUSTID')
    taken[#taken + 1] = { id, attempts + 1, entry[2] }
  end
end

while #taken < count do
  local wanted = count - #taken
  local reply = redis.call('XREADGROUP', 'GROUP', group, 'c', 'COUNT', wanted, 'STREAMS', key, '>')
  local entries = reply and reply[1][2] or {}
  for _, entry in ipairs(entries) do
    if (named(entry[2])['run'] or '') == run_id then
      taken[#taken + 1] = { entry[1], 1, entry[2] }
    else
      redis.call('XACK', key, group, entry[1])
    end
  end
  if #entries < wanted then
    break
  end
end
return taken
