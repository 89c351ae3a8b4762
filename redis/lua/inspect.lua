-- Reads what is shown of a lock, and its counter. It changes nothing.
--
-- Returns what shown.lua does, then the counter or "".

-- include base.lua
-- include shown.lua

local reply = {shown(redis.call('GET', RECORD), redis.call('PTTL', RECORD), '', true)}
reply[10] = redis.call('GET', COUNTER) or ''
return reply
