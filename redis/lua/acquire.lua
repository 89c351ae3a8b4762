-- Acquires a lock exclusively, or lines up for it.
--
-- ARGV 1 owner  2 TTL ms  3 counter's TTL ms  4 process and note
--      5 "" to try, else heartbeat ms  6 "1" to return the line too  7 TTL in 13 digits
--      8 head start µs, if there is one
--
-- Returns the token, a number; or
--   {"undone"} when a tombstone refuses this owner; or
--   {"held", ms until a recheck makes sense or -1, and what shown.lua returns}.

-- include base.lua

local owner = ARGV[1]
if redis.call('ZSCORE', UNDONE, owner) then return {'undone'} end

-- include lineup.lua
-- include shown.lua

local function held(recheck, record, ttl)
  return {'held', recheck, shown(record, ttl, owner, ARGV[6] == '1')}
end

local recheck, ttl = -1, -2
local record = redis.call('GET', RECORD)
if record and record ~= '+' then
  local token, holder = string.match(record, '^(%d+):([^:]+):%d+:')
  if not token then return held(-1, record, -2) end -- it is no lock, as the caller will see
  if holder == owner then
    -- This request was sent again after an unknown outcome: one owner, one grant. It may be a
    -- copy that comes late, so what a renewal has put off stays put off.
    redis.call('PEXPIRE', RECORD, ARGV[2], 'GT')
    return tonumber(token)
  end
  ttl = redis.call('PTTL', RECORD)
  if ARGV[5] ~= '' and lineup(owner, 'x', ARGV[5], ARGV[3], ARGV[7] .. ARGV[4], record) then
    recheck = ttl -- the first in line takes over, should the holder die
  end
  return held(recheck, record, ttl)
end

-- include mint.lua
-- include line.lua
-- include readers.lua

local readers = record and prune() or 0
local head, entry, score = first(LINE)
local mine = not head or head == owner or HEADSTART > 0 and place(owner) < tonumber(score)
if readers == 0 and mine then
  if head == owner then leave(owner) end
  forget()
  return grant(owner, ARGV[2], ARGV[3], ARGV[4])
elseif readers == 0 then
  recheck = tonumber(string.sub(entry, 1, 13)) - now
elseif mine then
  recheck = redis.call('ZRANGE', READERS, -1, -1, 'WITHSCORES')[2] - now
end
if ARGV[5] ~= '' then lineup(owner, 'x', ARGV[5], ARGV[3], ARGV[7] .. ARGV[4]) end
return held(recheck, record, ttl)
