-- Sets the life of a key that is written often, so that it ends no earlier than `life_ms` from now. Looking costs a third of
-- setting, which goes into the append-only file and to the replicas as well: the life is set a two-thousandth longer (43 s a
-- day), and again when that much of it has passed.
local function prolong(key, life_ms)
  if redis.call('PTTL', key) < life_ms then
    redis.call('PEXPIRE', key, life_ms + math.floor(life_ms / 2000))
  end
end
