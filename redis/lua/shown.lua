-- What is shown of a lock: now µs, record or "", its PTTL, some readers, their infos, how many
-- there are; then of the line in front of owner, of all of it if owner is not there: the first
-- waiters and their entries if line is set, and how many wait. Only the first 64 are searched
-- for dead ones.
local function shown(record, ttl, owner, line)
  local readers, infos, holding = {}, {}, 0
  if record == '+' then
    readers = redis.call('ZREVRANGE', READERS, 0, 15) -- who lives longest comes first
    if #readers > 0 then infos = redis.call('HMGET', INFO, unpack(readers)) end
    holding = redis.call('ZCOUNT', READERS, string.format('%.0f', now), '+inf')
  end
  local waiters, entries = {}, {}
  local waiting = redis.call('ZRANK', LINE, owner) or redis.call('ZCARD', LINE)
  local searched = line and math.min(waiting, 64) or 0
  for from = 0, searched - 1, 16 do
    if #waiters == 16 then break end
    local front = redis.call('ZRANGE', LINE, from, math.min(from + 16, searched) - 1)
    for i, entry in ipairs(redis.call('HMGET', WAITERS, unpack(front))) do
      if not entry or tonumber(string.sub(entry, 1, 13)) <= now then
        waiting = waiting - 1
      elseif #waiters < 16 then
        waiters[#waiters + 1], entries[#entries + 1] = front[i], entry
      end
    end
  end
  for i, info in ipairs(infos) do infos[i] = info or '' end
  return string.format('%.0f', time[1] * 1000000 + time[2]), record or '', ttl,
    readers, infos, holding, waiters, entries, waiting
end
