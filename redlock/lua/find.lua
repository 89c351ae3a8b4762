-- What ARGV[1] has here that is live: expiry is nil if it has nothing. other says that
-- somebody else has the lock exclusively, or has it shared while ARGV[1] has nothing.
local owner = ARGV[1]
local expiry, token, tail, reader, other
if rest == '+' then
  reader = true
  other = prune() > 0
  local info = redis.call('HGET', INFO, owner)
  if info then expiry, token, tail = string.match(info, '^(%d+):(%d+):(.*)$') end
elseif rest ~= '' then
  local holder
  expiry, token, holder, tail = string.match(rest, '^(%d+):(%d+):([%w_-]+):(.*)$')
  if expiry and tonumber(expiry) < now then expiry = nil end
  if expiry and holder ~= owner then expiry, other = nil, true end
end

-- Its name as a vote: when it was cast, and by which acquisition. What was renewed (1) or adopted (0) is
-- nobody's vote any more, and nobody gives it back.
local cast, caster = string.match(tail or '', '^(%d+)%-?(%w*):')
local vote = caster and #caster ~= 1 and cast

-- Writes what the owner has.
local function put()
  if reader then
    if rest ~= '+' then redis.call('DEL', READERS, INFO) end -- of before somebody deleted the state
    rest = '+'
    read(owner, expiry, token .. ':' .. tail)
  else
    rest = expiry .. ':' .. token .. ':' .. owner .. ':' .. tail
  end
  save()
end
