-- Records the token that a quorum's votes have come to, where the owner still has that vote.
--
-- ARGV 1 owner  2 token  3 granted µs, which tells the vote from an earlier or later one
--
-- Returns 1, or 0 when the owner does not have it here; "lost" and "abstains" as lock.lua.

-- include base.lua
-- include votes.lua
-- include state.lua
-- include readers.lua
-- include find.lua

if not expiry or vote ~= ARGV[3] then return 0 end
token = ARGV[2]
if tonumber(token) > counter then digits = token end
put()
return 1
