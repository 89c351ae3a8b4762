local HEADSTART = tonumber(ARGV[8] or 0)

-- When a newcomer arrives. It arrives after the last in line, should the server's clock have been set
-- back. No two have one score: of waiters with equal ones who came first is first.
local function arrival()
  local last = redis.call('ZRANGE', LINE, -1, -1, 'WITHSCORES')[2]
  local at = time[1] * 1000000 + time[2]
  if last and tonumber(last) >= at then at = last + 1 end
  while HEADSTART > 0 do
    local score = string.format('%.0f', at - HEADSTART)
    if redis.call('ZCOUNT', LINE, score, score) == 0 then break end
    at = at + 1
  end
  return at
end

-- Owner's score in the line, that which its head start would give it, or nil for a newcomer
-- without one, who would be the last.
local function place(owner)
  local mine = redis.call('ZSCORE', LINE, owner)
  if mine then return tonumber(mine) end
  return HEADSTART > 0 and arrival() - HEADSTART or nil
end

-- Lines owner up, or keeps its place and renews its heartbeat. The keys outlive every
-- heartbeat, whose maximum is 5 s, and vanish with the last waiter. record is that of a
-- writer who holds the lock, nil if it is free or readers have it. tail is what an entry
-- has after the arrival. Returns whether owner is the first.
--
-- A place that somebody deleted is made anew where it was, by the arrival in the entry. So is a line,
-- with its marks: a line that is not there has a PTTL of -2.
local function lineup(owner, mode, heartbeat, life, tail, record)
  local due = redis.call('PTTL', LINE) < 10000
  local digits = due and counted()
  local mine = redis.call('HGET', WAITERS, owner)
  local arrived = mine and string.sub(mine, 15, 30) or string.format('%016.0f', arrival())
  local score = HEADSTART > 0 and string.format('%.0f', arrived - HEADSTART) or arrived
  redis.call('ZADD', LINE, score, owner)
  if mode == 'x' and redis.call('ZADD', WRITERS, score, owner) == 1 then
    redis.call('PEXPIRE', WRITERS, 15000, 'NX') -- it may begin later than the line
  end
  if redis.call('HSET', WAITERS, owner,
    string.format('%013.0f', now + heartbeat) .. mode .. arrived .. tail) == 1 then
    redis.call('PEXPIRE', WAITERS, 15000, 'NX') -- or be made anew, after a deletion
  end
  if due then
    redis.call('PEXPIRE', LINE, 15000)
    redis.call('PEXPIRE', WAITERS, 15000)
    redis.call('PEXPIRE', WRITERS, 15000)
    mark(digits, life)
    if record and string.sub(record, -1) ~= '*' then redis.call('APPEND', RECORD, '*') end
  end
  return redis.call('ZRANGE', LINE, 0, 0)[1] == owner
end
