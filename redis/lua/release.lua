-- Ends an exclusive grant, and hands over to the next in line.
--
-- ARGV 1 token:owner:  2 channel prefix  3 process  4 counter's TTL ms
--
-- Returns 1, or 0 when nobody holds the lock, 2 when somebody else does; or
-- {owner, token} when it is granted to the next in line at once. That happens when the
-- next waiter is of the process that releases: the reply is then its proof, for which the
-- process took the start before it sent this. Any other waiter is woken and claims.

local record = redis.call('GET', KEYS[1])
if not record then return 0 end
if string.sub(record, 1, #ARGV[1]) ~= ARGV[1] then return 2 end

-- include base.lua
-- include line.lua

local owner, entry = first(LINE)
if owner and exclusive(entry) and process(entry) == ARGV[3] then
  -- include mint.lua
  leave(owner)
  local ttl = string.format('%.0f', tonumber(string.sub(entry, 31, 43)))
  return {owner, grant(owner, ttl, ARGV[4], string.sub(entry, 44))}
end

-- include wake.lua

redis.call('DEL', RECORD)
wake(ARGV[2])
return 1
