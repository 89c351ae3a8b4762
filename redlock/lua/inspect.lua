-- Reads who has the lock, and changes nothing.
--
-- Returns {"held", now µs, ...} as seen.lua has it; "lost" and "abstains" as lock.lua.

-- include base.lua
-- include votes.lua
-- include state.lua
-- include seen.lua

return seen(256)
