-- What is known of acked entries, in their order: `<type>:<marks>:<how many>` for each run of equal ones, with blanks between.
-- Marks: `s` for `deliver: any`, `d` for a demanded confirmation, `u` when the caller does not hold the entry.
local function parse_facts(text)
  local facts = {}
  for kind, marks, count in string.gmatch(text, '([^ :]*):(%a*):(%d+)') do
    local one = {
      type = kind,
      shared = string.find(marks, 's', 1, true) ~= nil,
      demanded = string.find(marks, 'd', 1, true) ~= nil,
      unknown = string.find(marks, 'u', 1, true) ~= nil,
    }
    for _ = 1, tonumber(count) do
      facts[#facts + 1] = one
    end
  end
  return facts
end

-- What the caller does not know the envelope tells, while the entry is stored.
local function stored_facts(stream, id)
  local entry = redis.call('XRANGE', stream, id, id)[1]
  local fine, event = pcall(cmsgpack.unpack, entry and entry[2][2] or '')
  if not fine or type(event) ~= 'table' or type(event.type) ~= 'string' then
    return { type = '' }
  end
  return { type = event.type, shared = event.deliver == 'any', demanded = event.require ~= nil }
end
