-- Takes a free lock that nobody waits for: the usual case, with the fewest commands.
--
-- KEYS 1 record  2 counter
-- ARGV 1 owner  2 TTL ms  3 counter's TTL ms  4 process and note
--
-- Returns the token, a number; or 0, having granted nothing, when acquire.lua must look
-- closer: the record is there, or the counter has the mark "*", which stands for a line or
-- for tombstones, or it holds something else, or leaves no token that a double can count.
--
-- No lock is held without a record, in whichever mode, so NX alone decides. A counter that
-- was raised for nothing is put back, with a new TTL.

local time = redis.call('TIME')
local token = time[1] * 1000000 + time[2]
local at = string.format('%.0f', token)
local digits = at
local previous = redis.call('SET', KEYS[2], at, 'PX', ARGV[3], 'GET')
if previous then
  local last = tonumber(previous)
  if not last or not (last < 9007199254740991) then -- nan too
    if string.match(previous, '^%d+%*?$') then
      redis.call('SET', KEYS[2], previous, 'PX', math.max(ARGV[3], 150000)) -- as base.lua does
    else
      redis.call('SET', KEYS[2], previous) -- a stranger's: acquire.lua tells, and it stays
    end
    return 0
  end
  if last >= token then
    token = last + 1
    digits = string.format('%.0f', token)
    redis.call('SET', KEYS[2], digits, 'PX', ARGV[3])
  end
end
if not redis.call('SET', KEYS[1], digits .. ':' .. ARGV[1] .. ':' .. at .. ':' .. ARGV[4], 'PX', ARGV[2], 'NX') then
  -- The counter shows what has been granted, and nothing else.
  if previous then redis.call('SET', KEYS[2], previous, 'PX', ARGV[3]) else redis.call('DEL', KEYS[2]) end
  return 0
end
return token
