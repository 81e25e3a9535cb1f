#!lua
-- Stores a command of a user, once for each request of a session, and tells the agents that follow the user.
-- Not allowed when memory is full: the client is told, and asks again.
--
-- KEYS
--   commands         the user's commands
--   bucket_even      idempotency fields of the even windows
--   bucket_odd       idempotency fields of the odd windows
--   run              the hash of the run that it is for; any key of the partition where it is for none
-- ARGV
--   request          16 bytes that stand for user, session and request
--   followed         the user's shard channel
--   dedupe_ms        length of a window
--   retention_ms     life of the commands
--   max_commands     most commands that are kept
--   max_commands_bytes  and most memory that they take
--   session          the session id
--   type             what the command wants
--   data             its data as MessagePack
--   run_id           the run that it is for, empty for none
--   thread           where it belongs, empty for none
-- Returns
--   {'stored', its id} | {'duplicate', its id} | {'full'} | {'run_closed'}
--@include clock
--@include life
--@include order
--@include inbound

local key, request, dedupe_ms, run_id = KEYS[1], ARGV[1], tonumber(ARGV[3]), ARGV[10]
local now = now_ms()
local window = math.floor(now / dedupe_ms)
local this, other = KEYS[2 + window % 2], KEYS[3 - window % 2]

local function remember(id)
  redis.call('HSET', this, request, id)
  if now - window * dedupe_ms < 1000 or redis.call('HLEN', this) == 1 then
    redis.call('PEXPIREAT', this, string.format('%d', (window + 2) * dedupe_ms))
  end
end

local known = redis.call('HGET', this, request) or redis.call('HGET', other, request)
if known then
  remember(known)
  return { 'duplicate', known }
end
if run_id ~= '' and redis.call('HGET', KEYS[4], 'state') == 'completed' then
  return { 'run_closed' }
end

-- Takes away what everybody whom it is for has acked.
local function forget_handled()
  local groups = groups_info(key)
  local function acked_by(name, id)
    return not below(groups[name]['last-delivered-id'], id) and #redis.call('XPENDING', key, name, id, id, 1) == 0
  end
  local function is_handled(id, run)
    if run then
      return groups['run:' .. run] and acked_by('run:' .. run, id)
    end
    local found = false
    for name in pairs(groups) do
      if string.sub(name, 1, 6) == 'inbox:' then
        if not acked_by(name, id) then
          return false
        end
        found = true
      end
    end
    return found
  end
  for _, entry in ipairs(redis.call('XRANGE', key, '-', '+', 'COUNT', 1000)) do
    if is_handled(entry[1], named(entry[2])['run']) then
      redis.call('XDEL', key, entry[1])
    end
  end
end

-- Measuring is dear, so it is done for every 64th command, and where commands of this size would be too much.
local function is_full()
  local length, max_bytes, bytes = redis.call('XLEN', key), tonumber(ARGV[6]), #ARGV[9]
  if length >= tonumber(ARGV[5]) then
    return true
  end
  if length == 0 or (length % 64 ~= 0 and (length + 1) * bytes <= max_bytes) then
    return false
  end
  local usage = redis.pcall('MEMORY', 'USAGE', key)
  return type(usage) == 'number' and usage + bytes > max_bytes
end

if is_full() then
  redis.call('XTRIM', key, 'MINID', string.format('%d', now - ARGV[4]))
  if is_full() then
    forget_handled()
  end
  if is_full() then
    return { 'full' }
  end
end
local words = { 'session', ARGV[7], 'type', ARGV[8], 'data', ARGV[9] }
for name, value in pairs({ run = run_id, thread = ARGV[11] }) do
  if value ~= '' then
    words[#words + 1] = name
    words[#words + 1] = value
  end
end
local id = redis.call('XADD', key, 'MINID', '~', string.format('%d', now - ARGV[4]), '*', unpack(words))
prolong(key, tonumber(ARGV[4]))
remember(id)
redis.call('SPUBLISH', ARGV[2], 'c')
return { 'stored', id }
