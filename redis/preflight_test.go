package redis_test

import (
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redis"
)

// TestPreflight: each unfit setting is named, and nothing else.
func TestPreflight(t *testing.T) {
	t.Parallel()
	master := testserver.Redis(t, "--appendonly", "yes")
	for name, c := range map[string]struct {
		args []string
		says []string
	}{
		"append-only file": {[]string{"--appendonly", "yes"}, nil},
		"snapshots":        {[]string{"--save", "60 1"}, nil},
		"policy, no limit": {[]string{"--appendonly", "yes", "--maxmemory-policy", "allkeys-lru"}, nil},
		"limit, no policy": {[]string{"--appendonly", "yes", "--maxmemory", "100mb"}, nil},
		"no persistence":   {nil, []string{"neither append-only file nor snapshots"}},
		"eviction": {
			[]string{"--appendonly", "yes", "--maxmemory", "100mb", "--maxmemory-policy", "volatile-ttl"},
			[]string{"maxmemory-policy volatile-ttl with maxmemory 104857600 may evict locks"},
		},
		"replica": {
			[]string{"--appendonly", "yes", "--replicaof", hostPort(t, master)},
			[]string{"it is a replica"},
		},
		"all": {
			[]string{"--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"},
			[]string{"may evict locks", "neither append-only file nor snapshots"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			l := open(t, testserver.Redis(t, c.args...))
			err := l.Preflight(bounded(t))
			if c.says == nil {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, redis.ErrUnfit)
			for _, says := range c.says {
				require.ErrorContains(t, err, says)
			}
			joined, ok := err.(interface{ Unwrap() []error })
			require.True(t, ok)
			require.Len(t, joined.Unwrap(), len(c.says), "%v", err)
		})
	}
}

// TestPreflightWithoutConfig: hosted services refuse CONFIG. What INFO shows is judged.
func TestPreflightWithoutConfig(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	require.NoError(t, w.rdb.Do(bounded(t), "ACL", "SETUSER", "u", "on", ">p", "+@all", "-config", "~*", "&*").Err())
	l := dial(t, &goredis.Options{Addr: w.server.Addr(), Username: "u", Password: "p"})
	require.NoError(t, l.Preflight(bounded(t)))
	require.NoError(t, w.rdb.Do(bounded(t), "CONFIG", "SET", "maxmemory", "100mb", "maxmemory-policy", "allkeys-lfu").Err())
	require.ErrorIs(t, l.Preflight(bounded(t)), redis.ErrUnfit)
}
