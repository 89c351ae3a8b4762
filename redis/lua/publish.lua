-- Publishes, as a wake-up does.
--
-- KEYS 1 any, for the Cluster's sake
-- ARGV 1 channel  2 payload

return redis.call('PUBLISH', ARGV[1], ARGV[2])
