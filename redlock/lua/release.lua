-- Ends what one owner has. Where that is nothing it may leave a mark that refuses a request
-- of that owner which comes later: one that this release has overtaken. Where there is
-- something it does so if that request may have been sent more than once.
--
-- ARGV 1 owner  2 token, or 0 for any  3 mark's life ms, or 0 for none  4 "1" if shared
--      5 "1" if it leaves the mark whatever there is
--      6 granted µs of the vote that it ends, or "" for any
--      7 "1" if the holder's TTL is over: a vote without the token is ended, but is no grant
--      8 "1" if it ends only what has that very token, and was not adopted
--      9 the acquisition whose vote it ends, and whose late requests its mark refuses, or "" for the owner
--
-- Returns 1; 0 when the owner has nothing here, 2 when another has the lock. A node that does
-- not vote does so too, and returns {"abstains", ms, node, one of these}.

-- include base.lua
-- include node.lua
-- include state.lua
-- include readers.lua
-- include find.lua
-- include marks.lua

local by = ARGV[9] or ''
local late = by == '' and owner or owner .. ':' .. by
local ended = 0
if expiry and (ARGV[2] == '0' or tonumber(token) <= tonumber(ARGV[2]))
  and (ARGV[6] == '' or vote == ARGV[6])
  and (by == '' or caster == by)
  and (ARGV[8] ~= '1' or token == ARGV[2] and caster ~= '0') then
  insist()
  if reader then
    redis.call('ZREM', READERS, owner)
    redis.call('HDEL', INFO, owner)
  else
    rest = ''
  end
  -- Of a try that got nothing no token stays: rejoin.lua would take it for that of a later grant.
  if ARGV[6] ~= '' and was ~= '' then
    if reader and redis.call('ZCARD', READERS) > 0 then base = was else digits = was end
  end
  if ARGV[5] == '1' then mark(late, ARGV[3]) end
  save()
  if ARGV[7] ~= '1' or token == ARGV[2] then ended = 1 end
else
  if ARGV[3] ~= '0' and (not expiry or by ~= '') then
    mark(late, ARGV[3])
    save()
  end
  if other and not (reader and ARGV[4] == '1') then ended = 2 end
end
return abstains > 0 and {'abstains', abstains, node, ended} or ended
