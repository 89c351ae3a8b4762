-- Wakes the first live waiter, and if it is a reader the readers that follow it at once.
-- A waiter claims with its own acquire, which verifies, mints the token and starts the
-- TTL. Publishing comes last and by pcall: a missing permission must not undo what was
-- done, and a waiter that hears nothing rechecks by its own timer.
local function wake(channel)
  local owner, entry = first()
  local at = 0
  while owner do
    redis.pcall('PUBLISH', channel .. process(entry), 'wake ' .. owner)
    if exclusive(entry) then return end
    at = at + 1
    owner = redis.call('LINDEX', LINE, at)
    entry = owner and redis.call('HGET', WAITERS, owner)
    if not entry or exclusive(entry) then return end
  end
end
