-- Ends the grant of one owner by force, tells its process, and wakes the next in line.
--
-- ARGV 1 owner  2 channel prefix
--
-- Returns 1, or 0 when that owner has no grant.

-- include base.lua
-- include line.lua
-- include readers.lua
-- include wake.lua

local holder
local record = redis.call('GET', RECORD)
if record == '+' then
  prune()
  local info = redis.call('HGET', INFO, ARGV[1])
  if not info then return 0 end
  holder = string.match(info, '^%d+:%d+:(.*)$')
  unread(ARGV[1])
else
  local owner
  owner, holder = string.match(record or '', '^%d+:([^:]+):%d+:(.*)$')
  if owner ~= ARGV[1] then return 0 end
  redis.call('DEL', RECORD)
end
redis.pcall('PUBLISH', ARGV[2] .. string.sub(holder, 1, 22), 'forced ' .. ARGV[1])
if redis.call('EXISTS', RECORD) == 0 then wake(ARGV[2]) end
return 1
