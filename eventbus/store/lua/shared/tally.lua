-- Counts what reached a state, one HINCRBY a type.
local function tally(key, state, ids, facts)
  local types = {}
  for _, id in ipairs(ids) do
    local kind = facts[id].type
    types[kind] = (types[kind] or 0) + 1
  end
  for kind, n in pairs(types) do
    count(key, state, kind, n)
  end
end
