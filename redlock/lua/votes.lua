-- A node that has lost data, or may have, keeps out of it.
local node = redis.call('GET', NODE)
if not node then return 'lost' end
local from = tonumber(string.sub(node, 1, 13))
local abstains = from - now
if abstains > 0 then return {'abstains', abstains, node} end
