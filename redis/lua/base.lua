-- The beginning of all scripts but those for the usual case, in place of "-- include base.lua".
-- Functions are in files of their own, since Redis makes them anew at each call: a script
-- includes what it needs, where it needs it.
--
-- KEYS of them all:
--   1 record    token:owner:granted µs:process note, then "*" if anybody waits; or "+" for readers
--   2 counter   the last token, then "*" if the line or tombstones exist
--   3 readers   sorted set owner -> expiry ms
--   4 info      hash owner -> 13 digits expiry ms | token:granted µs:process note
--   5 line      sorted set owner -> arrival µs, less the head start
--   6 waiters   hash owner -> 13 digits deadline ms | x or s | 16 digits arrival µs |
--                             13 digits TTL ms | 22 bytes process | note
--   7 writers   sorted set, the part of the line that waits for an exclusive grant
--   8 undone    sorted set owner -> ms until which a tombstone refuses that owner's late requests
--
-- A place in line is also the reservation: while its owner's heartbeat lives nobody
-- behind it, and no newcomer, may take the lock.

local RECORD, COUNTER, READERS, INFO, LINE, WAITERS, WRITERS, UNDONE =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7], KEYS[8]

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)

-- A mark must outlive what it stands for: the line, which is refreshed, and tombstones.
local MARKED = 150000

local function mark(digits, life)
  redis.call('SET', COUNTER, (digits or '0') .. '*', 'PX', math.max(life, MARKED))
end

-- The digits of the last token, nil if it is lost.
local function counted()
  local value = redis.call('GET', COUNTER)
  if not value then return nil end
  local digits = string.match(value, '^(%d+)%*?$')
  if not digits or tonumber(digits) >= 9007199254740991 then
    error(redis.error_reply('WRONGVALUE the token counter ' .. COUNTER .. ' is not a number below 2^53 - 1'))
  end
  return digits
end

local function leave(owner)
  redis.call('HDEL', WAITERS, owner)
  redis.call('ZREM', LINE, owner)
  redis.call('ZREM', WRITERS, owner)
end
