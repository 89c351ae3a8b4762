-- Reads who has the lock, and changes nothing.
--
-- Returns {"seen", now µs, ...} as seen.lua has it; "lost" and "abstains" as lock.lua.

-- include base.lua
-- include votes.lua
-- include state.lua
-- include seen.lua

return seen('seen', 256)
