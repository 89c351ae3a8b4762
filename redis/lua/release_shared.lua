-- Ends one reader's grant; the last one wakes the next in line.
--
-- ARGV 1 token:  2 channel prefix  3 owner
--
-- Returns 1, or 0 when the reader is gone, 2 when a writer holds the lock since.

-- include base.lua
-- include line.lua
-- include readers.lua
-- include wake.lua

local record = redis.call('GET', RECORD)
if not record then return 0 end
if record ~= '+' then return 2 end
prune()
local info = redis.call('HGET', INFO, ARGV[3])
if not info or string.sub(info, 14, 13 + #ARGV[1]) ~= ARGV[1] then return 0 end
unread(ARGV[3])
if redis.call('EXISTS', RECORD) == 0 then wake(ARGV[2]) end
return 1
