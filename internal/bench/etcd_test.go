package bench

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
	"go.uber.org/zap"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/etcd"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

func etcdClient(t *testing.T, addr string) *clientv3.Client {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{addr}, Logger: zap.NewNop()})
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, cli.Close()) })
	return cli
}

// onEtcd returns a lock.Client and a plain one, each with a connection of its own.
func onEtcd(t *testing.T) (*clientv3.Client, *lock.Client) {
	t.Helper()
	addr := testserver.Etcd(t).Addr()
	plain, l := etcdClient(t, addr), etcd.New(etcdClient(t, addr))
	c := lock.New(l)
	t.Cleanup(func() {
		require.NoError(t, c.Close(context.Background()))
		require.NoError(t, l.Close())
	})
	require.NoError(t, c.Err())
	return plain, c
}

// TestEtcdUncontended compares Do with a transaction that puts a key if it is absent and a
// delete, each caller on a key of its own.
func TestEtcdUncontended(t *testing.T) {
	s := scales()
	cli, c := onEtcd(t)
	ctx := context.Background()
	ours := func(caller, _ int) {
		err := c.Do(ctx, "ours:"+strconv.Itoa(caller), func(context.Context, *lock.Lease) error { return nil })
		if err != nil {
			panic(err)
		}
	}
	bare := func(caller, n int) {
		key := "bare/" + strconv.Itoa(caller)
		resp, err := cli.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).
			Then(clientv3.OpPut(key, strconv.Itoa(n))).Commit()
		if err == nil && resp.Succeeded {
			_, err = cli.Delete(ctx, key)
		}
		if err != nil || !resp.Succeeded {
			panic(fmt.Sprint(resp, err))
		}
	}
	out := table{title: "etcd, uncontended: acquire and release per second", head: []string{"callers", "`Do`", "bare transaction + delete", "ratio"}}
	for _, callers := range []int{1, 16, 64} {
		a, b, ratio := pairs(s, callers, ours, bare)
		out.add(strconv.Itoa(callers), fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio))
	}
	out.print()
}

// TestEtcdContended lets 64 callers fight for one key, in turns with as many that use
// concurrency.Mutex, each of them with a session of its own: within one session all hold it.
func TestEtcdContended(t *testing.T) {
	const callers = 64
	s := scales()
	cli, c := onEtcd(t)
	ctx := context.Background()
	sessions := make([]*concurrency.Session, callers)
	for i := range sessions {
		session, err := concurrency.NewSession(cli, concurrency.WithTTL(15))
		require.NoError(t, err)
		sessions[i] = session
		defer func() { require.NoError(t, session.Close()) }()
	}
	served := make([]int, callers)
	ours := func(caller, _ int) {
		l, err := c.Lock(ctx, "one")
		if err != nil {
			panic(err)
		}
		served[caller]++
		if err := l.Release(ctx); err != nil {
			panic(err)
		}
	}
	mutex := func(caller, _ int) {
		m := concurrency.NewMutex(sessions[caller], "mutex")
		if err := m.Lock(ctx); err != nil {
			panic(err)
		}
		if err := m.Unlock(ctx); err != nil {
			panic(err)
		}
	}
	s.slice, s.rounds = s.contended/5, min(s.rounds, 7)
	a, b, ratio := pairs(s, callers, ours, mutex)
	out := table{title: "etcd, 64 callers on one key: hand-overs per second", head: []string{"`Lock`", "`concurrency.Mutex`, a session each", "ratio", "least to most served"}}
	out.add(fmt.Sprintf("%.0f", a), fmt.Sprintf("%.0f", b), fmt.Sprintf("%.2f", ratio),
		fmt.Sprintf("%.2f", float64(slices.Min(served))/float64(slices.Max(served))))
	out.print()
}
