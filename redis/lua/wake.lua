-- Wakes the first live waiter, and if it is a reader all readers up to the first writer. A
-- waiter claims with its own acquire, which verifies, mints the token and starts the
-- TTL. Publishing comes last and by pcall: a missing permission must not undo what was
-- done, and a waiter that hears nothing rechecks by its own timer.
local function wake(channel)
  local owner, entry = first(LINE)
  if not owner then return end
  if exclusive(entry) then
    redis.pcall('PUBLISH', channel .. process(entry), 'wake ' .. owner)
    return
  end
  local _, _, writer = first(WRITERS)
  for _, reader in ipairs(redis.call('ZRANGEBYSCORE', LINE, '-inf', writer and '(' .. writer or '+inf')) do
    entry = redis.call('HGET', WAITERS, reader)
    if entry then redis.pcall('PUBLISH', channel .. process(entry), 'wake ' .. reader) end
  end
end
