-- What an ack does, for ack_mixed.lua and confirm.lua. They say whose it is in locals: `stream`, `records`, `live`, `any_acked`, `counts`,
-- `session`, `user`, `channel`; and for all `retention_ms`, `kept`, `live_ttl_ms`.

-- Takes ids off the pending entries, one by one, for one call for all does not tell which of them were there. Returns the ids
-- that this released, those of them that are `deliver: any`, and the facts of all by id. An entry that another session released
-- first, and that this one had read all the same, is put down as such.
local function take(ids, facts)
  local gone, shared, late, known = {}, {}, {}, {}
  for i, id in ipairs(ids) do
    if redis.call('XACK', stream, session, id) == 1 then
      local one = facts[i].unknown and stored_facts(stream, id) or facts[i]
      known[id] = one
      if not one.shared then
        gone[#gone + 1] = id
      elseif redis.call('SADD', any_acked, id) == 1 then
        gone[#gone + 1] = id
        shared[#shared + 1] = id
      else
        late[#late + 1] = id
      end
    end
  end
  tally(counts, 'received', gone, known)
  if #late > 0 then
    tally(counts, 'released', late, known)
    record(records, retention_ms, 'released', session, late)
  end
  return gone, shared, known
end

-- Which of these are recorded, by the setting.
local function recorded(ids, known)
  if kept ~= 'required' then
    return kept == 'all' and ids or {}
  end
  local demanded = {}
  for _, id in ipairs(ids) do
    if known[id].demanded then
      demanded[#demanded + 1] = id
    end
  end
  return demanded
end
