-- Reads all there is about a lock, and changes nothing.
--
-- KEYS are those of base.lua.
--
-- Returns {now µs, record or "", its PTTL, counter or "", readers, their infos, line, waiters}.

local time = redis.call('TIME')
local owners = redis.call('ZRANGE', KEYS[3], 0, -1)
local infos = {}
for i, owner in ipairs(owners) do infos[i] = redis.call('HGET', KEYS[4], owner) or '' end
return {
  string.format('%.0f', time[1] * 1000000 + time[2]),
  redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1]),
  redis.call('GET', KEYS[2]) or '',
  owners, infos,
  redis.call('LRANGE', KEYS[5], 0, -1), redis.call('HGETALL', KEYS[6]),
}
