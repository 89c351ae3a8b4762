-- Ends one owner's grant by force, and notes that, so that its next renewal says so.
--
-- ARGV 1 owner  2 mark's life ms
--
-- Returns 1, or 0 when the owner has nothing here; on a node that does not vote as release.lua.

-- include base.lua
-- include node.lua
-- include state.lua
-- include readers.lua
-- include find.lua
-- include marks.lua

if expiry then
  insist()
  if reader then
    redis.call('ZREM', READERS, owner)
    redis.call('HDEL', INFO, owner)
  else
    rest = ''
  end
  mark('!' .. owner, ARGV[2])
  save()
end
local ended = expiry and 1 or 0
return abstains > 0 and {'abstains', abstains, node, ended} or ended
