-- A field `#<session>` of the live hash is `<connection> <count>`: of how many trimmed entries that connection was told by its
-- attach. What another connection was told says nothing, for nobody knows whether it arrived.
local function told_count(value, connection)
  local by, count = string.match(value or '', '^(%S+) (%d+)$')
  return by == connection and tonumber(count) or 0
end
