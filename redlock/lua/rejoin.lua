-- Gives a grant that a quorum has just renewed back to a node that does not have it, since
-- it lost its data or was out of reach. Else a long grant would end with the last of a
-- quorum's nodes to be restarted, though never two were down at once.
--
-- A counter above the token refuses it: whoever was granted the lock after this grant's
-- end has put its own token on a quorum's counters, so however late this request comes, it
-- can never bring the grant back to a quorum. Beside other readers the counter may be one of
-- theirs, and what comes late is one more of them. A release that has overtaken it has left
-- a mark.
--
-- ARGV 1 owner  2 token  3 TTL ms  4 "1" if shared
--
-- Returns 1, or 0 when it may not.

-- include base.lua
-- include votes.lua
-- include state.lua
-- include undone.lua
-- include readers.lua
-- include find.lua

local shared = ARGV[4] == '1'
if expiry or other and not (reader and shared) then return 0 end
if counter > tonumber(ARGV[2]) and not other then return 0 end
if flag == '*' and redis.call('ZSCORE', MARKS, '!' .. owner) then return 0 end
expiry, token, tail, reader = string.format('%.0f', now + ARGV[3]), ARGV[2], '0:', shared
if tonumber(token) > counter then digits = token end
put()
return 1
