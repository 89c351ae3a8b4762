-- Hands an exclusive grant over: ends that of one owner and votes for the next, of the same
-- process, in one step. Where nobody holds the lock it just votes.
--
-- ARGV 1 to 5 as lock.lua, of the next owner  6 owner  7 token
--
-- Returns {1 if it has ended a grant, else 0, now µs, 0 if the vote records the proposed
-- token or else the least that it would record}; or as lock.lua
--   "lost", "abstains", "undone", {"held", ...}, and {"held", now µs, "+"} for readers

-- include base.lua
-- include votes.lua
-- include state.lua
-- include undone.lua

local owner = ARGV[1]
local ended, token = 0, '0'
if rest == '+' then
  -- include readers.lua
  if prune() > 0 then return {'held', string.format('%.0f', micros), '+'} end
elseif rest ~= '' then
  local expiry, held, holder = string.match(rest, '^(%d+):(%d+):([%w_-]+):')
  if expiry and tonumber(expiry) >= now then
    if holder == owner then
      ended, token = 1, held -- this request was sent again
    elseif holder == ARGV[6] and tonumber(held) <= tonumber(ARGV[7]) then
      ended = 1
    else
      return {'held', string.format('%.0f', micros), rest}
    end
  end
end
-- include mint.lua
rest = string.format('%.0f', now + ARGV[2]) .. ':' .. token .. ':' .. owner .. ':' ..
  string.format('%.0f', micros) .. ':' .. ARGV[5]
save()
if type(reply) == 'table' then return {ended, reply[1], reply[2]} end
return {ended, reply, 0}
