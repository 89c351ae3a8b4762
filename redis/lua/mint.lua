-- Mints the next token: max(previous + 1, server µs). It rises even when the counter is
-- lost, as long as the clocks of the servers agree within the time that the loss takes, so
-- the counter may expire and abandoned keys cost nothing. '%.0f', since Lua's own
-- conversion prints 1.79e+15. Returns the token, its digits, the time's, and the mark.
local function mint(life)
  local token = time[1] * 1000000 + time[2]
  local at = string.format('%.0f', token)
  local digits = at
  local previous = counted()
  if previous and tonumber(previous) >= token then
    token = previous + 1
    digits = string.format('%.0f', token)
  end
  if redis.call('EXISTS', LINE, UNDONE) > 0 then
    mark(digits, life)
    return token, digits, at, '*'
  end
  redis.call('SET', COUNTER, digits, 'PX', life)
  return token, digits, at, ''
end

-- Mints a token and writes the record of an exclusive grant with it, in one step.
local function grant(owner, ttl, life, tail)
  local token, digits, at, flag = mint(life)
  redis.call('SET', RECORD, digits .. ':' .. owner .. ':' .. at .. ':' .. tail .. flag, 'PX', ttl)
  return token
end
