-- Guards a step on values in Redis by a fencing token. Fence appends the step.
--
-- KEYS 1 mark  then the step's own
-- ARGV 1 token  then the step's own
--
-- Returns {"stale", newest} or {"done", what the step returns}. The mark rises whether the
-- step reads or writes, in the same atomic script, and never expires.

local token = table.remove(ARGV, 1)
local mark = table.remove(KEYS, 1)
local newest = redis.call('GET', mark)
if newest and tonumber(newest) > tonumber(token) then return {'stale', newest} end
if newest ~= token then redis.call('SET', mark, token) end

