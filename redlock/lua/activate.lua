-- Lets a new node vote at once, when all nodes are new: nothing can have been forgotten
-- that was ever known. What was forgotten may be a moment old, and its tokens ahead of the
-- clocks: lua/mint.lua leaves those out.
--
-- KEYS 1 node
-- ARGV 1 its value as it was seen: another one is that of another life
--
-- Returns 1, or 0 when that has changed.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local time = redis.call('TIME')
local now = string.format('%013.0f', time[1] * 1000 + math.floor(time[2] / 1000))
redis.call('SET', KEYS[1], now .. ':a:' .. string.match(ARGV[1], '(%x+)$'))
return 1
