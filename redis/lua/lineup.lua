-- Lines owner up, or keeps its place and renews its heartbeat. The keys outlive every
-- heartbeat, whose maximum is 5 s, and vanish with the last waiter. record is that of a
-- writer who holds the lock, nil if it is free or readers have it. tail is what an entry
-- has after the arrival. Returns whether owner is the first.
local function lineup(owner, mode, heartbeat, life, tail, record)
  local mine = redis.call('HGET', WAITERS, owner)
  local arrived = mine and string.sub(mine, 15, 27) or string.format('%013.0f', now)
  local first
  if mine then
    first = redis.call('LINDEX', LINE, 0) == owner
  else
    first = redis.call('RPUSH', LINE, owner) == 1
  end
  if not mine and first then
    local ok, digits = pcall(counted)
    if not ok then
      leave(owner)
      error(digits)
    end
    mark(digits, life)
    if record and string.sub(record, -1) ~= '*' then redis.call('APPEND', RECORD, '*') end
  end
  redis.call('HSET', WAITERS, owner,
    string.format('%013.0f', now + heartbeat) .. mode .. arrived .. tail)
  if redis.call('PTTL', LINE) < 10000 then
    redis.call('PEXPIRE', LINE, 15000)
    redis.call('PEXPIRE', WAITERS, 15000)
    redis.call('PEXPIRE', COUNTER, math.max(life, MARKED))
  end
  return first
end
