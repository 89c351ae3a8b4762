-- Decides whether this node votes. It is sent by whoever finds a script missing, who loads the
-- scripts when it has run, by the same connection: since Redis keeps no scripts when it restarts,
-- none that votes can run on a server that was restarted before this one has.
--
-- The node key says from when on the node votes. Without that key the node is new, or has
-- lost its data (kind n). With that of another run the server was restarted, and may have
-- lost the last writes, whatever it keeps on disk (kind r). Either way it abstains until
-- all that it may have forgotten has expired.
--
-- KEYS 1 node
-- ARGV 1 ms to abstain
--
-- Returns node.

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local node = redis.call('GET', KEYS[1])
local from, kind, last
if node then from, kind, last = string.match(node, '^(%d+):(%l):(%x+)$') end
if last ~= run then
  -- A new node that is restarted before it has voted is as new as before.
  local fresh = not last or kind == 'n' and tonumber(from) > now
  node = string.format('%013.0f', now + ARGV[1]) .. ':' .. (fresh and 'n' or 'r') .. ':' .. run
  redis.call('PERSIST', KEYS[1]) -- a first write that a full server allows: then it allows the next
  redis.call('SET', KEYS[1], node)
end
return node
