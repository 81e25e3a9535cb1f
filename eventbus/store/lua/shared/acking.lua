-- What an ack does, for ack.lua and confirm.lua: their KEYS and their first ARGV are the same.

-- Takes ids off the pending entries, one by one, for one call for all does not tell which of them were there. Returns the ids
-- that this released, those of them that are `deliver: any`, and the facts of all by id. An entry that another session released
-- first, and that this one had read all the same, is put down as such.
local function take(ids, facts)
  local gone, shared, late, known = {}, {}, {}, {}
  for i, id in ipairs(ids) do
    if redis.call('XACK', KEYS[1], ARGV[1], id) == 1 then
      local one = facts[i].unknown and stored_facts(KEYS[1], id) or facts[i]
      known[id] = one
      if not one.shared then
        gone[#gone + 1] = id
      elseif redis.call('SADD', KEYS[4], id) == 1 then
        gone[#gone + 1] = id
        shared[#shared + 1] = id
      else
        late[#late + 1] = id
      end
    end
  end
  tally(KEYS[5], 'received', gone, known)
  if #late > 0 then
    tally(KEYS[5], 'released', late, known)
    record(KEYS[2], tonumber(ARGV[2]), 'released', ARGV[1], late)
  end
  return gone, shared, known
end

-- Which of these are recorded, by the setting.
local function recorded(ids, known)
  if ARGV[3] ~= 'required' then
    return ARGV[3] == 'all' and ids or {}
  end
  local demanded = {}
  for _, id in ipairs(ids) do
    if known[id].demanded then
      demanded[#demanded + 1] = id
    end
  end
  return demanded
end
