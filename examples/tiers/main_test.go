//go:build unix

package main

import (
	"context"
	"testing"

	goredis "github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/examples/internal/program"
	"github.com/seed-215fdefa/lock/internal/testserver"
	"github.com/seed-215fdefa/lock/redis"
)

func TestMain(m *testing.M) { program.Main(testserver.Main{M: m}, main) }

// TestEachKeyAtItsStore looks into both servers afterwards: each knows the token of its own
// key, and nothing of the other's.
func TestEachKeyAtItsStore(t *testing.T) {
	t.Parallel()
	rs, es, order := testserver.SharedRedis(t), testserver.SharedEtcd(t), testserver.Prefix()
	out, err := program.Start(t, "-redis", rs.Addr(), "-etcd", es.Addr(), "-order", order).Wait()
	require.NoError(t, err, "%s", out)
	for _, want := range []string{
		"locks are of tiers(redis, etcd)\n", "cart:" + order + " is held\n", "payment:" + order + " is held\n",
		"order " + order + " is paid, with token ", "begins with none of the prefixes",
	} {
		assert.Contains(t, out, want)
	}

	rdb := goredis.NewClient(&goredis.Options{Addr: rs.Addr()})
	defer rdb.Close()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{es.Addr()}, Logger: zap.NewNop()})
	require.NoError(t, err)
	defer cli.Close()
	fast, safe := redis.New(rdb), etcd.New(cli)
	defer fast.Close()
	defer safe.Close()
	requireFree(t, fast, "cart:"+order)
	requireFree(t, safe, "payment:"+order)
	carts, err := rdb.Keys(t.Context(), "*cart:"+order+"*").Result()
	require.NoError(t, err)
	require.NotEmpty(t, carts, "Redis keeps the counter of a key for a while")
	payments, err := rdb.Keys(t.Context(), "*payment:"+order+"*").Result()
	require.NoError(t, err)
	require.Empty(t, payments)
}

func requireFree(t *testing.T, l lock.Locker, key string) {
	t.Helper()
	rec, err := l.Inspect(context.Background(), key)
	require.NoError(t, err)
	require.Empty(t, rec.Holders)
}
