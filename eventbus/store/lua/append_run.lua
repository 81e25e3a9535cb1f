#!lua
-- Stores the next event of a run as append.lua does, and writes what it changes in the run: all of it or nothing (D6).
-- Not allowed when memory is full: that is the publisher's to wait for.
--
-- KEYS
--   counts           the partition's counts
--   paused           types of which nothing is taken
--   stream           the user's stream
--   live             the user's live sessions
--   bucket_even      idempotency fields of the even windows
--   bucket_odd       idempotency fields of the odd windows
--   threads          the user's threads by the place of their last event
--   due              what the partition watches
--   waiting          users for whom something waits, by the time of the oldest entry that does
--   run              the run's hash
--   operators        the events for the operators
-- ARGV
--   retention_ms     life of the stream and of its entries
--   dedupe_ms        length of a window
--   live_ttl_ms      life of a live field
--   max_entries      hard cap of the stream
--   max_bytes        hard cap of the stream's memory
--   policy           gap or reject
--   field            16 bytes that stand for user and event id
--   body             the envelope
--   user             the user id, which is the wake-up
--   channel          what the shard channels of the partition begin with
--   type             of the event, for the counts
--   thread           where it belongs, empty for none
--   level            a demanded confirmation, empty for none
--   within_ms        until when it must come, from now
--   run_id           the run
--   seq              the event's number in the run
--   owner            who holds the lease, or takes it where nobody does
--   lease_ms         the lease from now on, 0 to give it up
--   order            next, or anew: events before this one are lost, and the run goes on behind the hole
--   event            the event id
--   announced_ms     life of the events for the operators
--   change...        repeated: set, gone, watch, unwatch or by
--   name...          repeated: of a field, or of a deadline
--   value...         repeated: of a field; of a deadline, milliseconds from now (watch) or Unix milliseconds (by); else empty
-- Returns
--   {'stored', entry, nodes woken} | {'duplicate', entry} | {'full', entries, bytes} | {'paused'} | {'out_of_order', the last seq}
--   | {'run_closed', state or other_owner}
--@include clock
--@include life
--@include live
--@include counts
--@include storing

local stream, user, due = KEYS[3], ARGV[9], KEYS[8]
local run, seq, owner = KEYS[10], tonumber(ARGV[16]), ARGV[17]
local stands, last

-- An event whose number the run has passed was stored by its owner, and its id is too old to be known: the event is looked for
-- among the newest. Found or not, it is not stored again.
local function stored_before()
  local upto = '+'
  for _ = 1, 10 do
    local page = redis.call('XREVRANGE', stream, upto, '-', 'COUNT', 100)
    for _, item in ipairs(page) do
      if string.find(item[2][2], ARGV[20], 1, true) then
        return item[1]
      end
    end
    if #page < 100 then
      break
    end
    upto = '(' .. page[#page][1]
  end
  return stands[4]
end

-- Why the event is not the run's next one; nil when it is.
local function refusal()
  stands = redis.call('HMGET', run, 'seq', 'owner', 'state', 'entry')
  last = tonumber(stands[1]) or 0
  local holder = stands[2] or ''
  local same = holder == owner
  if same and seq <= last then
    return { 'duplicate', stored_before() }
  end
  if stands[3] == 'completed' then
    return { 'run_closed', stands[3] }
  end
  if holder ~= '' and not same then
    return { 'run_closed', 'other_owner' }
  end
  if seq <= last or (seq ~= last + 1 and ARGV[19] ~= 'anew') then
    return { 'out_of_order', last }
  end
  return nil
end

local answer = store_event(3, 7, refusal)
if answer[1] ~= 'stored' then
  return answer
end
count_stored()

local entry = answer[2]
local member = 'run ' .. user .. ' ' .. ARGV[15] .. ' '
local fields = { 'user', user, 'seq', ARGV[16], 'owner', owner, 'lease_ms', ARGV[18], 'entry', entry }
if not stands[3] then
  fields[11], fields[12] = 'state', 'running'
end
local gone = {}
for i = 22, #ARGV, 3 do
  local change, name, value = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if change == 'set' then
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  elseif change == 'gone' then
    gone[#gone + 1] = name
  elseif change == 'watch' then
    redis.call('ZADD', due, now + value, member .. name)
  elseif change == 'unwatch' then
    -- One that has passed stays: it was missed, whoever comes to see it.
    local at = redis.call('ZSCORE', due, member .. name)
    if at and tonumber(at) >= now then
      redis.call('ZREM', due, member .. name)
    end
  elseif now > tonumber(value) and redis.call('HEXISTS', run, 'breach:' .. name) == 0 then
    redis.call('ZADD', due, value, member .. name)
  end
end
redis.call('HSET', run, unpack(fields))
if #gone > 0 then
  redis.call('HDEL', run, unpack(gone))
end
prolong(run, retention_ms)
if ARGV[18] == '0' then
  redis.call('ZREM', due, member .. 'lease')
else
  redis.call('ZADD', due, now + ARGV[18], member .. 'lease')
end
if seq ~= last + 1 then
  local told = { 'kind', 'order', 'user', user, 'run', ARGV[15], 'after_seq', last, 'seq', ARGV[16] }
  redis.call('XADD', KEYS[11], 'MAXLEN', '~', 10000, '*', unpack(told))
  prolong(KEYS[11], tonumber(ARGV[21]))
end
return answer
