package redis_test

import (
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redis"
)

// TestRights: the rights that the package comment lists are enough for a single server.
func TestRights(t *testing.T) {
	t.Parallel()
	w := ownWorld(t)
	rightsSuffice(t, []*testserver.Server{w.server}, func() goredis.UniversalClient {
		return goredis.NewClient(&goredis.Options{Addr: w.server.Addr(), Username: "app", Password: "p"})
	})
}

// rightsOnCluster: they are enough for a Cluster, too.
func rightsOnCluster(t *testing.T, cluster *testserver.Cluster) {
	rightsSuffice(t, cluster.Nodes, func() goredis.UniversalClient {
		return goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: cluster.Addrs(), Username: "app", Password: "p"})
	})
}

// rightsSuffice gives the user app the rights that the package comment lists, those of a Locker
// and then those of a Fence, and does everything that needs them.
func rightsSuffice(t *testing.T, servers []*testserver.Server, connect func() goredis.UniversalClient) {
	acl := storetest.ACL(t, "redis.go")
	require.Len(t, acl, 2)
	allow := func(rules []any) {
		for _, s := range servers {
			require.NoError(t, client(t, s).Do(bounded(t), append([]any{"ACL", "SETUSER", "app"}, rules...)...).Err())
		}
	}
	open := func() (*redis.Locker, goredis.UniversalClient) {
		rdb := connect()
		l := redis.New(rdb)
		t.Cleanup(func() {
			_ = l.Close()
			_ = rdb.Close()
		})
		return l, rdb
	}
	allow(append([]any{"on", ">p"}, acl[0]...))
	a, rdb := open()
	b, _ := open()
	ctx := bounded(t)
	if err := a.Preflight(ctx); err != nil { // the tests' Clusters have no persistence
		require.ErrorIs(t, err, redis.ErrUnfit)
		require.NotContains(t, err.Error(), "wake-ups")
	}
	both(t, func(t *testing.T, mode func(lock.Request) lock.Request) {
		g := renew(t, a, acquire(t, a, mode(request("k"))))
		refused(t, b, request("k"))
		waiting := waits(t, b, request("k"))
		for rec, err := range a.List(ctx, "") {
			require.NoError(t, err)
			require.Equal(t, "k", rec.Key)
		}
		release(t, a, g)
		g = waiting.granted()
		told := make(chan lock.LostReason, 1)
		next := mode(request("k"))
		next.Lost = func(why lock.LostReason) { told <- why }
		waiting = waits(t, a, next)
		require.NoError(t, a.ForceRelease(ctx, "k", g.Owner))
		waiting.granted()
		require.NoError(t, b.ForceRelease(ctx, "k", next.Owner))
		select {
		case why := <-told:
			require.Equal(t, lock.ReasonForced, why)
		case <-ctx.Done():
			require.FailNow(t, "the holder hears of nothing")
		}
	})

	f := redis.NewFence(rdb)
	require.ErrorContains(t, f.Set(ctx, "stock:42", 1, "9", 0), "the rights that the package comment lists")
	allow(acl[1])
	require.NoError(t, f.Set(ctx, "stock:42", 1, "9", 0))
	v, err := f.Get(ctx, "stock:42", 2)
	require.NoError(t, err)
	require.Equal(t, "9", v)
	_, err = f.Eval(ctx, 2, "return redis.call('INCR', KEYS[1])", []string{"stock:42"})
	require.NoError(t, err)
	staleBy(t, f.Set(ctx, "stock:42", 1, "9", 0), "stock:42", 1, 2)
}
