-- Ends an exclusive grant that nobody waits for: the usual case, with the fewest commands.
--
-- KEYS 1 record
-- ARGV 1 token:owner:
--
-- Returns 1, or 0 when nobody holds the lock, 2 when somebody else does; or 3, having
-- changed nothing, when release.lua must hand over: the record has the mark "*" at its end.

local record = redis.call('GET', KEYS[1])
if not record then return 0 end
if string.sub(record, 1, #ARGV[1]) ~= ARGV[1] then return 2 end
if string.sub(record, -1) == '*' then return 3 end
redis.call('DEL', KEYS[1])
return 1
