-- Redis's clock in Unix milliseconds: the only one that stamps are made with and compared by.
local function now_ms()
  local time = redis.call('TIME')
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end
