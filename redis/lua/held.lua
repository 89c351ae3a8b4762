-- What acquire says of who is in the way, and of the line if that is asked for.
local function held(recheck, record, ttl, line)
  local some, infos = {}, {}
  if record == '+' then
    some = redis.call('ZREVRANGE', READERS, 0, 15)
    -- None: the last one's time is over, and the record's in this very millisecond.
    if #some > 0 then infos = redis.call('HMGET', INFO, unpack(some)) end
    record = nil
  end
  local reply = {'held', recheck, string.format('%.0f', time[1] * 1000000 + time[2]),
    record or '', ttl, some, infos}
  if line then
    reply[8] = redis.call('LRANGE', LINE, 0, -1)
    reply[9] = redis.call('HGETALL', WAITERS)
  end
  return reply
end
