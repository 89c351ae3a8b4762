-- Acquires a lock beside other readers, or lines up for it.
--
-- ARGV and replies are those of acquire.lua.

-- include base.lua
-- include mint.lua
-- include line.lua
-- include lineup.lua
-- include readers.lua
-- include shown.lua

local owner = ARGV[1]
local function held(recheck, record, ttl)
  return {'held', recheck, shown(record, ttl, owner, ARGV[6] == '1')}
end

if redis.call('ZSCORE', UNDONE, owner) then return {'undone'} end

local expiry = now + ARGV[2]
local record = redis.call('GET', RECORD)
local writer = record ~= '+' and record or nil -- GET's nothing is false
if not record then
  forget()
elseif not writer then
  prune()
  local again = redis.call('HGET', INFO, owner)
  if again then
    -- This request was sent again, or comes late: see acquire.lua.
    read(owner, math.max(expiry, tonumber(string.sub(again, 1, 13))), string.sub(again, 14))
    return tonumber(string.match(again, '^(%d+):', 14))
  end
end

-- The first live writer that waits in front of this owner: readers in front do not block.
local function blocker()
  local head, entry, arrived = first(WRITERS)
  if not head then return nil end
  local mine = place(owner)
  if mine and mine < tonumber(arrived) then return nil end
  return entry
end

local recheck, ttl
if writer and not string.match(writer, '^%d+:[^:]+:%d+:') then
  return held(-1, record, -2) -- it is no lock, as the caller will see
elseif writer then
  ttl = redis.call('PTTL', RECORD)
  recheck = ttl
else
  local entry = blocker()
  if not entry then
    leave(owner)
    local token, digits, at = mint(ARGV[3])
    read(owner, expiry, digits .. ':' .. at .. ':' .. ARGV[4])
    return token
  end
  ttl = -2
  recheck = tonumber(string.sub(entry, 1, 13)) - now
end
if ARGV[5] ~= '' then
  lineup(owner, 's', ARGV[5], ARGV[3], ARGV[7] .. ARGV[4], writer)
end
return held(recheck, record, ttl)
