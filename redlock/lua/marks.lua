-- Notes something about an owner that outlives its grant. pcall: a node out of memory may
-- refuse it, which must not undo the rest.
local function mark(member, life)
  redis.call('ZREMRANGEBYSCORE', MARKS, '-inf', now)
  if type(redis.pcall('ZADD', MARKS, string.format('%.0f', now + life), member)) ~= 'number' then return end
  redis.call('PEXPIRE', MARKS, life)
  flag = '*'
end
