-- Restarts the TTL of an exclusive grant. It never creates one.
--
-- KEYS 1 record
-- ARGV 1 token:owner:  2 TTL ms
--
-- Returns 1, or 0 when nobody holds the lock, 2 when somebody else does.

local record = redis.call('GET', KEYS[1])
if not record then return 0 end
if string.sub(record, 1, #ARGV[1]) ~= ARGV[1] then return 2 end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return 1
