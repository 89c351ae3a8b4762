-- Votes for an exclusive grant.
--
-- ARGV 1 owner  2 TTL ms  3 proposed token, 0 for none  4 how far it may be ahead, µs
--      5 metadata
--
-- Returns now µs if the vote records the proposed token; {now µs, least token that it would
-- record} if the vote is without one; or
--   "lost", {"abstains", ms, node}  when this node does not vote
--   "undone"                        when a release has overtaken this request
--   {"held", now µs, ...}           as seen.lua has it

-- include base.lua
-- include votes.lua
-- include state.lua
-- include undone.lua

local owner = ARGV[1]
local token, granted = '0', nil
if rest == '+' then
  -- include readers.lua
  -- include seen.lua
  if prune() > 0 then return seen('held', 16) end
elseif rest ~= '' then
  local expiry, held, holder, since = string.match(rest, '^(%d+):(%d+):([%w_-]+):(%d+):')
  if expiry and tonumber(expiry) >= now then
    if holder ~= owner then return {'held', string.format('%.0f', micros), rest} end
    token, granted = held, since
  end
end
-- include mint.lua
rest = string.format('%.0f', now + ARGV[2]) .. ':' .. token .. ':' .. owner .. ':' ..
  (granted or string.format('%.0f', micros)) .. ':' .. ARGV[5]
save()
return reply
