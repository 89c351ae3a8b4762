-- Records the token that a quorum's votes have come to, where the owner still holds.
--
-- ARGV 1 owner  2 token
--
-- Returns 1, or 0 when the owner has nothing here; "lost" and "abstains" as lock.lua.

-- include base.lua
-- include votes.lua
-- include state.lua
-- include readers.lua
-- include find.lua

if not expiry then return 0 end
token = ARGV[2]
if tonumber(token) > counter then digits = token end
put()
return 1
