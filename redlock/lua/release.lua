-- Ends what one owner has. Where that is nothing it may leave a mark that refuses a request
-- of that owner which comes later: one that this release has overtaken. Where there is
-- something it does so if that request may have been sent more than once.
--
-- ARGV 1 owner  2 token, or 0 for any  3 mark's life ms, or 0 for none  4 "1" if shared
--      5 "1" if it leaves the mark whatever there is
--      6 granted µs of the vote that it ends, or "" for any
--      7 "1" if the holder's TTL is over: a vote without the token is ended, but is no grant
--
-- Returns 1; 0 when the owner has nothing here, 2 when another has the lock. A node that does
-- not vote does so too, and returns {"abstains", ms, node, one of these}.

-- include base.lua
-- include node.lua
-- include state.lua
-- include readers.lua
-- include find.lua
-- include marks.lua

-- Puts the counter back to what it was before this vote: rejoin.lua takes a higher one for a later
-- grant, and a try that got nothing is none. A reader that has voted since found the vote's token
-- there: then that one puts it back.
local function withdraw()
  local before = string.match(tail, '^%d+<(%d+)')
  if token == digits then
    digits = before
  elseif reader and token ~= '0' then
    local infos = redis.call('HGETALL', INFO)
    for i = 2, #infos, 2 do
      local info, n = string.gsub(infos[i], '<' .. token .. ':', '<' .. before .. ':', 1)
      if n > 0 then redis.call('HSET', INFO, infos[i - 1], info) end
    end
  end
end

local ended = 0
if expiry and (ARGV[2] == '0' or tonumber(token) <= tonumber(ARGV[2]))
  and (ARGV[6] == '' or string.match(tail, '^%d+') == ARGV[6]) then
  insist()
  if reader then
    redis.call('ZREM', READERS, owner)
    redis.call('HDEL', INFO, owner)
  else
    rest = ''
  end
  if ARGV[6] ~= '' then withdraw() end
  if ARGV[5] == '1' then mark(owner, ARGV[3]) end
  save()
  if ARGV[7] ~= '1' or token == ARGV[2] then ended = 1 end
else
  if ARGV[3] ~= '0' and not expiry then
    mark(owner, ARGV[3])
    save()
  end
  if other and not (reader and ARGV[4] == '1') then ended = 2 end
end
return abstains > 0 and {'abstains', abstains, node, ended} or ended
