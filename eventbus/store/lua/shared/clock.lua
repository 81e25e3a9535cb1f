-- Redis's clock in Unix milliseconds: the only one that stamps are made with and compared by.
local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
