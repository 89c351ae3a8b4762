-- Takes back whatever one owner has: a grant, a place in line. It leaves a
-- tombstone, which refuses a request of that owner that this undo has overtaken.
--
-- ARGV 1 owner  2 tombstone's life ms  3 channel prefix  4 counter's TTL ms
--
-- Returns 1.

-- include base.lua
-- include line.lua
-- include readers.lua
-- include wake.lua

local owner = ARGV[1]
redis.call('ZREMRANGEBYSCORE', UNDONE, '-inf', now)

local record = redis.call('GET', RECORD)
if record == '+' then
  prune()
  unread(owner)
elseif record and string.match(record, '^%d+:([^:]+):') == owner then
  redis.call('DEL', RECORD)
end
leave(owner)

-- pcall: a server out of memory refuses the tombstone, and has let go of the rest.
if type(redis.pcall('ZADD', UNDONE, string.format('%.0f', now + ARGV[2]), owner)) == 'number' then
  redis.call('PEXPIRE', UNDONE, ARGV[2])
  local ok, digits = pcall(counted)
  if ok then mark(digits, ARGV[4]) end
end

-- Whoever stood behind may be next now: a reader beside readers, anybody when it is free.
record = redis.call('GET', RECORD)
if not record or record == '+' then wake(ARGV[3]) end
return 1
