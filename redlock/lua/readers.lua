-- Removes the readers whose TTL is over; returns how many live. None does if somebody has deleted
-- one of the two keys: they are told at their next renewal.
local function prune()
  for _, reader in ipairs(redis.call('ZRANGEBYSCORE', READERS, '-inf', string.format('(%.0f', now))) do
    redis.call('ZREM', READERS, reader)
    redis.call('HDEL', INFO, reader)
    forget() -- it may have been granted
  end
  local live = redis.call('ZCARD', READERS)
  if live ~= redis.call('HLEN', INFO) then
    redis.call('DEL', READERS, INFO)
    forget()
    live = 0
  end
  return live
end

-- Each reader expires alone; the keys vanish with the last.
local function read(reader, expiry, info)
  redis.call('ZADD', READERS, expiry, reader)
  redis.call('HSET', INFO, reader, expiry .. ':' .. info)
  local last = redis.call('ZRANGE', READERS, -1, -1, 'WITHSCORES')[2]
  redis.call('PEXPIREAT', READERS, last)
  redis.call('PEXPIREAT', INFO, last)
end
