-- Votes for a shared grant. ARGV and replies are those of lock.lua.

-- include base.lua
-- include votes.lua
-- include state.lua
-- include undone.lua
-- include readers.lua
-- include find.lua

if other and not reader then return {'held', string.format('%.0f', micros), rest} end
reader, token = true, expiry and token or '0'
tail = expiry and tail or string.format('%.0f', micros) .. ':' .. ARGV[5]
-- include mint.lua
expiry = string.format('%.0f', now + ARGV[2])
put()
return reply
