-- Ends one owner's grant by force, and notes that, so that its next renewal says so.
--
-- ARGV 1 owner  2 mark's life ms
--
-- Returns 1, or 0 when the owner has nothing here.

-- include base.lua
-- include state.lua
-- include readers.lua
-- include find.lua
-- include marks.lua

if not expiry then return 0 end
insist()
if reader then
  redis.call('ZREM', READERS, owner)
  redis.call('HDEL', INFO, owner)
else
  rest = ''
end
mark('!' .. owner, ARGV[2])
save()
return 1
