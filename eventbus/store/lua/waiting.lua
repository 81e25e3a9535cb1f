#!lua flags=no-writes,allow-oom
-- Pending entries of a session as operators see them; a session that is not there has none.
--
-- KEYS
--   stream           the user's stream
-- ARGV
--   session          the session id
--   after            entries after this id
--   count            entries at most
-- Returns
--   for each entry {id, consumer, idle_ms, delivery count}

local page = redis.pcall('XPENDING', KEYS[1], ARGV[1], '(' .. ARGV[2], '+', ARGV[3])
if page.err and string.find(page.err, '^NOGROUP') then
  return {}
end
return page
