-- Restarts the TTL of one reader. It never creates one, and leaves the others alone.
--
-- ARGV 1 token:  2 TTL ms  3 owner
--
-- Returns 1, or 0 when the reader is gone, 2 when a writer holds the lock since.

-- include base.lua
-- include readers.lua

local record = redis.call('GET', RECORD)
if not record then return 0 end
if record ~= '+' then return 2 end
prune()
local info = redis.call('HGET', INFO, ARGV[3])
if not info or string.sub(info, 14, 13 + #ARGV[1]) ~= ARGV[1] then return 0 end
redis.call('PEXPIRE', RECORD, ARGV[2]) -- first, for a server out of memory refuses only a script's first write
read(ARGV[3], now + ARGV[2], string.sub(info, 14))
return 1
