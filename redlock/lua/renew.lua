-- Restarts the TTL of a grant. It never creates one. A vote may have been without the
-- token, or with the lower one that was proposed first.
--
-- ARGV 1 owner  2 token  3 TTL ms  4 "1" if shared
--      5 "1" if the holder's TTL is over: a vote without the token is no grant then
--
-- Returns 1; 0 when the owner has nothing here, 2 when another has the lock, 3 when the
-- grant was ended by force; "lost" and "abstains" as lock.lua: what a node that has been
-- restarted remembers may be over.

-- include base.lua
-- include votes.lua
-- include state.lua
-- include readers.lua
-- include find.lua

if expiry and (token == ARGV[2] or ARGV[5] ~= '1' and tonumber(token) < tonumber(ARGV[2])) then
  insist()
  expiry, token = string.format('%.0f', now + ARGV[3]), ARGV[2]
  -- It may have been the vote of another acquisition, which would give it back.
  if caster ~= '0' then tail = string.gsub(tail, '^(%d+)[^:]*', '%1-1') end
  put()
  return 1
end
if flag == '*' and redis.call('ZSCORE', MARKS, '!' .. owner) then return 3 end
if other and not (reader and ARGV[4] == '1') then return 2 end
return 0
