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

local before = redis.call('GET', RECORD)
if before == '+' then
  prune()
  unread(owner)
elseif before and string.match(before, '^%d+:([^:]+):') == owner then
  redis.call('DEL', RECORD)
end
local writer = redis.call('ZSCORE', WRITERS, owner)
leave(owner)

-- pcall: a server out of memory refuses the tombstone, and has let go of the rest.
if type(redis.pcall('ZADD', UNDONE, string.format('%.0f', now + ARGV[2]), owner)) == 'number' then
  redis.call('PEXPIRE', UNDONE, ARGV[2])
  local ok, digits = pcall(counted)
  if ok then mark(digits, ARGV[4]) end
end

-- Whoever stood behind may be next now: anybody if a grant has ended, readers behind a writer's place,
-- a writer behind a reader's. A reader's place has kept no readers: of a thousand that give up together
-- each would wake all others.
local record = redis.call('GET', RECORD)
if not record or record == '+' then
  local _, entry = first(LINE)
  if entry and (writer or before and not record or exclusive(entry)) then wake(ARGV[3]) end
end
return 1
