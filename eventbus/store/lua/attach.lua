#!lua flags=allow-oom
-- Opens, resumes, takes over or renews a session, and finds out what it will never get.
--
-- KEYS
--   stream           the user's stream
--   live             the user's live sessions
--   known            the user's sessions
--   epoch            the partition's epoch
--   records          the user's confirmations
--   counts           the partition's counts
--   gaps             gaps of which clients may not have heard
--   waiting          users for whom something waits
-- ARGV
--   mode             open or reattach
--   user             the user id
--   session          the session id
--   connection       the fencing token
--   node             where the connection is
--   start            new, earliest or cursor: for a session that does not exist
--   cursor           what the client has handled, 0-0 when it says nothing
--   client_epoch     the epoch that the client knows, empty when it knows none
--   fresh_epoch      a random word: the epoch when there is none
--   live_limit       most live sessions
--   known_limit      most sessions
--   live_ttl_ms      life of a live field
--   session_ttl_ms   life of a session that is away
--   retention_ms     life of the stream
--   channel          what the shard channels of the partition begin with
--   followed         the channel of those who follow the user
-- Returns
--   {'attached', 'new' or 'resumed', epoch, position, tail, pending, first pending or '', displaced or '',
--    reason or '', after, before, count or -1} | {'lost'} | {'too_many_sessions'}
--@include clock
--@include live
--@include order
--@include life
--@include counts
--@include records
--@include known
--@include told
--@include gaps

local stream, live, known = KEYS[1], KEYS[2], KEYS[3]
local mode, user, session, connection, node = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local start, cursor, client_epoch = ARGV[6], ARGV[7], ARGV[8]
local live_limit, known_limit = tonumber(ARGV[10]), tonumber(ARGV[11])
local live_ttl_ms, session_ttl_ms, retention_ms = tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[14])
local now = now_ms()

-- Made when it is missing: whoever knows another one has lost the data that it belonged to.
redis.call('SET', KEYS[4], ARGV[9], 'NX')
local epoch = redis.call('GET', KEYS[4])

-- Who is live. What is older than its life was left behind by a crash (D16); what begins with '#' marks a hole and is no session.
local live_now = {}
local marks = {}
local others = 0
local holder, holder_node, stale_node = nil, nil, nil
local fields = redis.call('HGETALL', live)
for i = 1, #fields, 2 do
  local name, value = fields[i], fields[i + 1]
  if string.sub(name, 1, 1) == '#' then
    marks[name] = value
  else
    local at, by = live_parts(value, now, live_ttl_ms)
    if not at then
      redis.call('HDEL', live, name)
      if name == session then
        stale_node = string.match(value, '^(%S+)')
      end
    elseif name == session then
      holder, holder_node = by, at
    else
      live_now[name] = true
      others = others + 1
    end
  end
end
if mode == 'reattach' and holder and holder ~= connection then
  return { 'lost' }
end
if not holder and others >= live_limit then
  return { 'too_many_sessions' }
end

-- Which sessions are known. One whose time is over goes with its group, this one too; so does a group without a session, and
-- the longest unseen go when there are too many.
local groups = groups_info(stream)
local function forget(name)
  redis.call('HDEL', known, name)
  redis.call('HDEL', KEYS[7], name)
  if groups[name] then
    end_group(stream, KEYS[5], KEYS[6], retention_ms, name)
    groups[name] = nil
  end
end
local kept, away = {}, {}
local kept_count = 0
fields = redis.call('HGETALL', known)
for i = 1, #fields, 2 do
  local name = fields[i]
  local created, seen, at = known_parts(fields[i + 1])
  local is_live = live_now[name] or (name == session and holder)
  if not created or (now - seen >= session_ttl_ms and not is_live and not (name == session and mode == 'reattach')) then
    forget(name)
  else
    kept[name] = { created = created, cursor = at }
    kept_count = kept_count + 1
    if not is_live and name ~= session then
      away[#away + 1] = { seen, name }
    end
  end
end
local orphans = {}
for name in pairs(groups) do
  if not kept[name] and not live_now[name] and not (name == session and (holder or mode == 'reattach')) then
    orphans[#orphans + 1] = name
  end
end
for _, name in ipairs(orphans) do
  forget(name)
end
if not kept[session] then
  table.sort(away, function(a, b)
    return a[1] < b[1] or (a[1] == b[1] and a[2] < b[2])
  end)
  for i = 1, math.min(#away, kept_count + 1 - known_limit) do
    forget(away[i][2])
  end
end

-- The stream, and where the group stands in it.
local info = stream_info(stream)
local last = info and info['last-generated-id'] or '0-0'
local first = info and info['length'] > 0 and info['first-entry'][1] or nil
local added = info and info['entries-added'] or 0
local trimmed = info and added - info['length'] or 0

-- How many of the entries ever added lie at or below an id, nil when there are too many above it to count.
local function read_count(id)
  if not first or not below(id, last) then
    return added
  elseif below(id, first) then
    return trimmed
  end
  local above, from = 0, '(' .. id
  while above < 1000 do
    local page = redis.call('XRANGE', stream, from, '+', 'COUNT', 100)
    above = above + #page
    if #page < 100 then
      return added - above
    end
    from = '(' .. page[#page][1]
  end
  return nil
end

local position, entries_read = nil, nil
local function set_group(how, id, count)
  position, entries_read = id, count
  local command = { 'XGROUP', how, stream, session, id }
  if how == 'CREATE' then
    command[#command + 1] = 'MKSTREAM'
  end
  if entries_read then
    command[#command + 1] = 'ENTRIESREAD'
    command[#command + 1] = entries_read
  end
  redis.call(unpack(command))
end

local same_epoch = client_epoch == '' or client_epoch == epoch
local existed = groups[session] ~= nil
local absent = cursor ~= '0-0' and #redis.call('XRANGE', stream, cursor, cursor) == 0
-- A new group has read nothing, so nobody can say how many of the trimmed entries lay behind the cursor: it is made without
-- a count.
local uncounted = absent and trimmed > 0 and below(cursor, last) and (not first or below(cursor, first))
if existed then
  position = groups[session]['last-delivered-id']
  entries_read = groups[session]['entries-read'] or nil
elseif mode == 'reattach' or kept[session] or not same_epoch then
  -- The session was there and its group is not: never at the end (D10), the client drops what it has seen.
  set_group('CREATE', '0-0', not uncounted and trimmed or nil)
elseif start == 'new' then
  set_group('CREATE', last, added)
elseif start == 'cursor' then
  set_group('CREATE', cursor, not uncounted and read_count(cursor) or nil)
else
  set_group('CREATE', '0-0', not uncounted and trimmed or nil)
end

-- What is lost: the inclusive check of the cursor, and what was trimmed unread (D4, D15).
local reason, after, before, count = '', '', '', -1
local new_gap = nil
local unread = entries_read and trimmed > entries_read
  or not entries_read and trimmed > 0 and below(position, last) and (not first or below(position, first))
if not same_epoch then
  reason, after, before = 'reset', cursor ~= '0-0' and cursor or '', first or ''
  if below(last, position) then
    set_group('SETID', '0-0', read_count('0-0'))
  end
elseif below(last, position) or (absent and (below(last, cursor) or (first and below(first, cursor)))) then
  -- Never forward: what came under lower ids after the failover may lie before the cursor and is unread.
  local upto = absent and cursor or position
  local surviving = redis.call('XREVRANGE', stream, upto, '-', 'COUNT', 1)
  surviving = surviving[1] and surviving[1][1] or '0-0'
  if below(surviving, position) then
    set_group('SETID', surviving, read_count(surviving))
  end
  local following = redis.call('XRANGE', stream, '(' .. surviving, '+', 'COUNT', 1)
  reason, before = 'rollback', following[1] and following[1][1] or ''
  after = surviving ~= '0-0' and surviving or (absent and cursor or '')
elseif unread then
  -- The group is left as it is: should this connection die before its client has heard of it, the next one is told again. Its
  -- first read settles it, and looks because of the marks.
  local told = told_count(marks['#' .. session], connection)
  if trimmed > told then
    reason, before = 'trimmed', first or ''
    after = position ~= '0-0' and position or uncounted and cursor or ''
    if entries_read or told > 0 then
      count = trimmed - math.max(entries_read or 0, told)
    end
  end
  local hole, upto = marks['#'], first or last
  redis.call('HSET', live, '#' .. session, connection .. ' ' .. trimmed, '#', hole and below(upto, hole) and hole or upto)
elseif uncounted and not existed then
  -- A new session that begins at the end.
  reason, after, before = 'trimmed', cursor, first or ''
  new_gap = { after = cursor, upto = first or last, before = first or '-', count = -1 }
end

-- What was told to an earlier connection, which may have ended before its client heard of it. That is known by what the client has
-- handled: it was sent behind the gap. Who gives no cursor has handled what was read and is not pending.
local noted = noted_gaps(KEYS[7], session)
local unheard = {}
for _, gap in ipairs(noted) do
  local heard
  if not existed and not kept[session] then
    heard = true
  elseif cursor ~= '0-0' then
    heard = not below(cursor, gap.upto)
  else
    heard = not below(position, gap.upto) and #redis.call('XPENDING', stream, session, '-', gap.upto, 1) == 0
  end
  if not heard then
    unheard[#unheard + 1] = gap
  end
end
if #unheard < #noted and mode == 'open' then
  keep_gaps(KEYS[7], retention_ms, session, unheard)
end
if #unheard > 0 and (reason == '' or reason == 'trimmed') then
  local known_count = reason == '' or count >= 0
  local total = reason == '' and 0 or count
  for _, gap in ipairs(unheard) do
    known_count = known_count and gap.count >= 0
    total = total + gap.count
  end
  if reason == '' then
    before = unheard[#unheard].before
  end
  reason, count, after = 'trimmed', known_count and total or -1, unheard[1].after
  after, before = after ~= '-' and after or '', before ~= '-' and before or ''
end
if new_gap then
  note_gap(KEYS[7], retention_ms, session, new_gap)
end

-- The session is the caller's from here on.
redis.call('HSET', live, session, string.format('%s %s %d', node, connection, now))
if not holder then
  redis.call('SPUBLISH', ARGV[16], 'p')
end
redis.call('PEXPIRE', live, live_ttl_ms)
-- Should its node die before it has said a word, somebody looks.
if redis.call('ZADD', KEYS[8], 'NX', string.format('%d', -now), user) == 1 then
  prolong(KEYS[8], 2 * retention_ms)
end
local mine = kept[session] or { created = now, cursor = '0-0' }
redis.call('HSET', known, session, known_value(mine.created, now, mine.cursor))
redis.call('PEXPIRE', known, session_ttl_ms)
keep_stream(stream, retention_ms)

local displaced = ''
if holder and holder ~= connection then
  displaced = holder
end
if displaced ~= '' or stale_node then
  local message = string.format('!%s %s %s', session, connection, user)
  redis.call('SPUBLISH', ARGV[15] .. (holder_node or stale_node), message)
end

local waiting = redis.call('XPENDING', stream, session)
local resumed = (existed or kept[session]) and 'resumed' or 'new'
return {
  'attached', resumed, epoch, position, last, waiting[1], waiting[2] or '', displaced, reason, after, before, count,
}
