-- The beginning of all scripts, in place of "-- include base.lua".
--
-- KEYS of them all but join and activate:
--   1 node     from ms (13 digits):kind:run id   when this node votes, or began to; see join.lua
--   2 state    counter, base, "*" if there are marks, ":", and what is held:
--                ""                                       nothing
--                expiry ms:token:owner:vote:metadata  by a writer; token 0 = not confirmed yet.
--                  vote is granted µs, "-", and the acquisition that cast it; see find.lua
--                "+"                                      by readers
--              base is "<" and the counter of before all that is held, while that may be no more than
--              votes of tries: what gives the last of them back restores it
--   3 readers  sorted set owner -> expiry ms
--   4 info     hash owner -> expiry ms:token:vote:metadata
--   5 marks    sorted set, score = ms until when: owner, or owner:acquisition, whose late requests
--              are refused; "!" owner, whose grant was ended by force
--
-- Expiries are compared with this node's clock as of the script's start. Who came late in a
-- millisecond lives to the end of another one, else its TTL would be cut. The state outlives
-- the grant for its counter's sake, and vanishes a day after its last use.

local NODE, STATE, READERS, INFO, MARKS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local LIFE = 86400000

local time = redis.call('TIME')
local micros = time[1] * 1000000 + time[2]
local now = math.floor(micros / 1000)
