-- Votes for a grant.
--
-- ARGV 1 owner  2 TTL ms  3 proposed token  4 how far it may be ahead, µs  5 metadata
--      6 "1" if shared  7 the acquisition
--
-- Returns now µs if the vote records the proposed token; {now µs, least token that it would
-- record} if the vote is without one; or
--   {"has", token}                  when the owner has a vote here by another acquisition, which stays
--                                   as it is; token 0 if adopt.lua would refuse it
--   "lost", {"abstains", ms, node}  when this node does not vote
--   "undone"                        when a release has overtaken this request
--   {"held", now µs, ...}           as seen.lua has it

-- include base.lua
-- include votes.lua
-- include state.lua
-- include undone.lua
-- include readers.lua
-- include find.lua
-- include seen.lua

local shared = ARGV[6] == '1'
if other and not (shared and reader) then return seen(16) end
if expiry and caster ~= (ARGV[7] or '') then
  if (reader or false) ~= shared then return seen(16) end
  return {'has', token == digits and tonumber(token) or 0}
end
if not expiry then base = other and was or digits end
reader, token = shared, expiry and token or '0'
tail = string.format('%.0f', micros) .. (ARGV[7] and '-' .. ARGV[7] or '') .. ':' .. ARGV[5]
-- include mint.lua
expiry = string.format('%.0f', now + ARGV[2])
put()
return reply
