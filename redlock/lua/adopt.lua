-- Has an acquisition take part in the grant that its owner has here by another one. Whatever has become
-- of that, it cannot give this back any more, nor confirm another token for it. A TTL is not cut.
--
-- The counter must be at the token. So who was granted the lock before has no higher one: a quorum that
-- adopts has a node in common with the quorum that recorded his.
--
-- ARGV 1 owner  2 token  3 TTL ms  4 "1" if shared
--
-- Returns 1, or 0 when the owner does not have that here; "lost" and "abstains" as lock.lua.

-- include base.lua
-- include votes.lua
-- include state.lua
-- include readers.lua
-- include find.lua

if not expiry or token ~= ARGV[2] or token ~= digits or (reader or false) ~= (ARGV[4] == '1') then return 0 end
insist()
expiry = string.format('%.0f', math.max(now + ARGV[3], expiry))
tail = string.gsub(tail, '^(%d+)[^:]*', '%1-0')
put()
return 1
