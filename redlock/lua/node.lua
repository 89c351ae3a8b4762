-- Until when this node does not vote.
local node = redis.call('GET', NODE)
if not node then return 'lost' end
local from = tonumber(string.sub(node, 1, 13))
local abstains = from - now
