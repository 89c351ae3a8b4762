package redis_test

import (
	"context"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/redis"
)

// openHolder opens what a process of its own has, which is killed or stopped: args are the
// address and the prefix.
func openHolder(args []string) (lock.Locker, storetest.Resource, error) {
	rdb := goredis.NewClient(&goredis.Options{Addr: args[0]})
	return redis.New(rdb, redis.WithPrefix(args[1])), resource(rdb, args[1]), nil
}

func resource(rdb *goredis.Client, prefix string) storetest.Resource {
	fence, key := redis.NewFence(rdb), prefix+"stock"
	return storetest.Resource{
		Read: func(ctx context.Context, token lock.Token) (string, error) { return fence.Get(ctx, key, token) },
		Write: func(ctx context.Context, token lock.Token, value string) error {
			return fence.Set(ctx, key, token, value, 0)
		},
	}
}

// TestKilledHolder: the first TryLock after the TTL succeeds.
func TestKilledHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.KilledHolder(t, w.open(t), 5*time.Second, w.server.Addr(), w.prefix)
}

// TestStoppedHolder: the write of a process that was stopped for longer than its lease.
func TestStoppedHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.StoppedHolder(t, w.open(t), resource(w.rdb, w.prefix), 6*time.Second, w.server.Addr(), w.prefix)
}

// TestKilledHolderWaiter: a waiting Lock gets it, and asks no more than once a second and
// at the end.
func TestKilledHolderWaiter(t *testing.T) {
	t.Parallel()
	const ttl = 10 * time.Second
	w := ownWorld(t)
	rival := w.open(t)
	ctx := bounded(t)
	h := storetest.StartHolder(t, "k", ttl, w.server.Addr(), w.prefix)
	c := lock.New(rival, lock.WithTTL(ttl))
	defer func() { require.NoError(t, c.Close(ctx)) }()
	granted := make(chan *lock.Lease, 1)
	go func() {
		lease, err := c.Lock(ctx, "k")
		if err == nil {
			granted <- lease
		}
		close(granted)
	}()
	eventually(t, "the waiter", func() bool { return len(inspect(t, rival, "k").Waiters) == 1 })
	h.Kill(t)
	since := time.Now()
	left, err := w.rdb.PTTL(ctx, w.prefix+"{k}").Result()
	require.NoError(t, err)
	require.Positive(t, left, "the dead holder's key")
	require.NoError(t, w.rdb.ConfigResetStat(ctx).Err())
	lease := <-granted
	require.NotNil(t, lease)
	took := time.Since(since)
	n := calls(t, w.rdb, "evalsha", "eval")

	require.Greater(t, lease.Token(), h.Token)
	require.GreaterOrEqual(t, took, left-10*time.Millisecond, "before the dead holder's TTL was over")
	require.LessOrEqual(t, n, 3+int(took/time.Second), "requests in %v", took)
}

// TestBrokenConnections: no call fails since a connection did.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).open(t)
	storetest.BrokenConnections(t, p, p.net.drop)
}

// TestPoolOfBrokenConnections: a restart of the server breaks all connections of a pool, which
// does not look at those of TLS before it hands them out. One call meets them all.
func TestPoolOfBrokenConnections(t *testing.T) {
	t.Parallel()
	const conns = 40
	w := sharedWorld(t)
	n := &network{conns: make(map[*wire]struct{})}
	rdb := goredis.NewClient(&goredis.Options{Addr: w.server.Addr(), Dialer: n.dial, PoolSize: conns})
	t.Cleanup(func() { _ = rdb.Close() })
	l := redis.New(rdb, redis.WithPrefix(w.prefix))
	t.Cleanup(func() { _ = l.Close() })
	pooled := make([]*goredis.Conn, conns)
	for i := range pooled {
		pooled[i] = rdb.Conn()
		require.NoError(t, pooled[i].Ping(storetest.Bounded(t)).Err())
	}
	for _, c := range pooled {
		require.NoError(t, c.Close())
	}
	n.drop()
	g := acquire(t, l, storetest.Request("k"))
	release(t, l, g)
}
