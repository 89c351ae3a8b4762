local digits, flag, rest = '0', '', ''
local was, base = '', '' -- the base that was found, and that to save
local state = redis.call('GET', STATE)
if state then
  digits, was, flag, rest = string.match(state, '^(%d+)<?(%d*)(%*?):(.*)$')
  if not digits then return redis.error_reply('WRONGVALUE ' .. STATE .. ' holds something else: choose another key prefix') end
end
local counter = tonumber(digits)

local function save()
  redis.call('SET', STATE, digits .. (base ~= '' and '<' .. base or '') .. flag .. ':' .. rest, 'PX', LIFE)
end

-- Forgets the base.
local function forget()
  if was ~= '' then
    was = ''
    save()
  end
end

-- A node out of memory lets a script store more if it has written before: for those that let
-- go, or keep what there is.
local function insist() redis.call('PEXPIRE', STATE, LIFE) end
