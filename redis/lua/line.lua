local function alive(entry)
  return entry and tonumber(string.sub(entry, 1, 13)) > now
end

local function exclusive(entry)
  return string.sub(entry, 14, 14) == 'x'
end

local function process(entry)
  return string.sub(entry, 44, 65)
end

-- The first live waiter of a line, its entry and its arrival. Dead ones in front of it are
-- removed.
local function first(line)
  while true do
    local head = redis.call('ZRANGE', line, 0, 0, 'WITHSCORES')
    local owner = head[1]
    if not owner then return nil end
    local entry = redis.call('HGET', WAITERS, owner)
    if alive(entry) then return owner, entry, head[2] end
    leave(owner)
  end
end
