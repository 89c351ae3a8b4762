local function alive(entry)
  return entry and tonumber(string.sub(entry, 1, 13)) > now
end

local function exclusive(entry)
  return string.sub(entry, 14, 14) == 'x'
end

local function process(entry)
  return string.sub(entry, 41, 62)
end

-- The first live waiter and its entry. Dead ones in front of it are removed.
local function first()
  while true do
    local owner = redis.call('LINDEX', LINE, 0)
    if not owner then return nil end
    local entry = redis.call('HGET', WAITERS, owner)
    if alive(entry) then return owner, entry end
    redis.call('LPOP', LINE)
    redis.call('HDEL', WAITERS, owner)
  end
end
