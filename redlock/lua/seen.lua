-- What a reply says of the holders: of readers at most limit, and how many live.
local function seen(limit)
  local at = string.format('%.0f', micros)
  if rest ~= '+' then return {'held', at, rest} end
  local owners = redis.call('ZREVRANGE', READERS, 0, limit - 1)
  local infos = {}
  if #owners > 0 then infos = redis.call('HMGET', INFO, unpack(owners)) end
  return {'held', at, '+', owners, infos, redis.call('ZCOUNT', READERS, string.format('%.0f', now), '+inf')}
end
