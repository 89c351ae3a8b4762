-- Gives the readers' keys the life of the reader that expires last; without any, there is
-- no record either.
local function settle()
  local last = redis.call('ZRANGE', READERS, -1, -1, 'WITHSCORES')[2]
  if not last then
    redis.call('DEL', RECORD)
    return
  end
  redis.call('SET', RECORD, '+', 'PXAT', last)
  redis.call('PEXPIREAT', READERS, last)
  redis.call('PEXPIREAT', INFO, last)
end

-- Removes the readers whose TTL is over; returns how many live. Like a key of Redis a reader
-- lives to the end of its last millisecond: who came late in one would else have that much
-- less than the TTL.
local function prune()
  for _, owner in ipairs(redis.call('ZRANGEBYSCORE', READERS, '-inf', string.format('(%.0f', now))) do
    redis.call('ZREM', READERS, owner)
    redis.call('HDEL', INFO, owner)
  end
  return redis.call('ZCARD', READERS)
end

-- Each reader expires alone, by the server's clock.
local function read(owner, expiry, value)
  redis.call('ZADD', READERS, string.format('%.0f', expiry), owner)
  redis.call('HSET', INFO, owner, string.format('%013.0f', expiry) .. value)
  settle()
end

local function unread(owner)
  redis.call('ZREM', READERS, owner)
  redis.call('HDEL', INFO, owner)
  settle()
end

-- Removes what is left of readers whose record somebody deleted: they have lost the lock, as a
-- writer may have had it since. It asks before, so that a stranger's value is told and stays.
local function forget()
  if redis.call('ZCARD', READERS) + redis.call('HLEN', INFO) > 0 then redis.call('DEL', READERS, INFO) end
end
