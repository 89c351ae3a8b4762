-- Lets a new node vote at once, when all nodes are new: nothing can have been forgotten
-- that was ever known.
--
-- KEYS 1 node
-- ARGV 1 its value as it was seen: another one is that of another life
--
-- Returns 1, or 0 when that has changed.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], '0000000000000:a:' .. string.match(ARGV[1], '(%x+)$'))
return 1
