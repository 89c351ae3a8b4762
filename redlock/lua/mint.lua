-- Records the proposed token with the vote, if it is above all that this node knows and no
-- lower than its clock, nor far ahead of it. Else the reply says what would be high enough.
-- A repeated request finds its own proposal.
--
-- Where the node has just begun to vote, tokens that it has forgotten may be that far ahead
-- of its clock, and other nodes' clocks ahead of its own. So it begins a second above its
-- clock, and goes on at half its rate until they are equal. Should it have to begin again
-- meanwhile, it is ahead of what it may have recorded by half the time since.
local floor = math.max(micros, math.floor(micros / 2) + from * 500 + 1000000)
local proposal, reply = tonumber(ARGV[3]), nil
if proposal > counter and proposal >= floor and proposal <= micros + ARGV[4] then
  digits, token, reply = ARGV[3], ARGV[3], micros
elseif token == ARGV[3] then
  reply = micros
elseif counter >= 9007199254740991 then
  return redis.error_reply('WRONGVALUE the token counter in ' .. STATE .. ' leaves no higher token')
else
  reply = {micros, math.max(counter + 1, floor)}
end
