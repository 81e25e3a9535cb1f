-- The place of an entry in its stream as one number that a double holds exactly: its milliseconds, then three digits of its number
-- in them. What comes after the thousandth of a millisecond has its place.
local function place_of(entry)
  local ms, number = string.match(entry, '^(%d+)-(%d+)$')
  return ms .. string.format('%03d', math.min(tonumber(number), 999))
end

-- A lower score is that of a version that wrote milliseconds. Both may be written while the publishers are being replaced.
local LEAST_PLACE = '100000000000000'
