-- A node that has lost data, or may have, keeps out of it.
-- include node.lua
if abstains > 0 then return {'abstains', abstains, node} end
