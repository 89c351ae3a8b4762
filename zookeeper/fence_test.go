package zookeeper_test

import (
	"context"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/zookeeper"
)

func (w world) fence(conn *zk.Conn) *zookeeper.Fence {
	return zookeeper.NewFence(conn, zookeeper.WithRoot(w.root+"/marks/deep"))
}

func staleBy(tb testing.TB, err error, key string, token, newest lock.Token) {
	tb.Helper()
	var stale *lock.StaleError
	require.ErrorAs(tb, err, &stale)
	require.ErrorIs(tb, err, lock.ErrStale)
	require.Equal(tb, lock.StaleError{Key: key, Token: token, Newest: newest}, *stale)
}

// TestFenceOfFrozenHolder: a holder freezes between its read and its write, and its session
// expires. The successor reads, and the first one's write, on a real connection, is refused.
func TestFenceOfFrozenHolder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.lasting().open(t)
	ctx := storetest.Bounded(t)
	stock := w.root + "/stock"
	_, err := b.conn.Create(stock, []byte("10"), 0, zk.WorldACL(zk.PermAll))
	require.NoError(t, err)
	fa, fb := w.fence(a.conn), w.fence(b.conn)

	first := storetest.Acquire(t, a, storetest.Request("k"))
	v, _, err := fa.Get(ctx, "stock", first.Token, stock)
	require.NoError(t, err)
	require.Equal(t, "10", string(v))
	a.expire(t) // it slept for so long

	next := storetest.Await(t, b, storetest.Request("k"))
	v, stat, err := fb.Get(ctx, "stock", next.Token, stock)
	require.NoError(t, err)
	_, err = fa.Multi(ctx, "stock", first.Token, &zk.SetDataRequest{Path: stock, Data: []byte("9"), Version: -1})
	staleBy(t, err, "stock", first.Token, next.Token)
	_, _, err = fa.Get(ctx, "stock", first.Token, stock)
	staleBy(t, err, "stock", first.Token, next.Token)
	require.Equal(t, "10", string(v))
	replies, err := fb.Multi(ctx, "stock", next.Token,
		&zk.SetDataRequest{Path: stock, Data: []byte("9"), Version: stat.Version},
		&zk.CreateRequest{Path: stock + "/sold", Acl: zk.WorldACL(zk.PermAll)})
	require.NoError(t, err)
	require.Len(t, replies, 2)
	require.Equal(t, stat.Version+1, replies[0].Stat.Version)
	require.Equal(t, stock+"/sold", replies[1].String)
}

// TestFenceOrder: whoever raises the mark, on whichever Fence, outdates the older token on
// all, even on one that has seen no newer one.
func TestFenceOrder(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	conn := dial(t, long, w.server.Addr())
	ctx := context.Background()
	for _, tokens := range [][2]lock.Token{{1, 2}, {9, 10}, {99999, 100000}, {lock.MaxToken - 1, lock.MaxToken}} {
		older, newer := tokens[0], tokens[1]
		one, other := w.fence(conn), w.fence(conn)
		key := older.String() + "/é"
		step := func(f *zookeeper.Fence, token lock.Token) error {
			_, err := f.Multi(ctx, key, token)
			return err
		}
		require.NoError(t, step(one, older))
		require.NoError(t, step(one, older), "the newest may go on")
		require.NoError(t, step(other, older))
		require.NoError(t, step(other, newer))
		staleBy(t, step(one, older), key, older, newer)
		staleBy(t, step(one, older), key, older, newer)
		staleBy(t, step(other, older), key, older, newer)
		require.NoError(t, step(one, newer))
		require.NoError(t, step(other, newer))
	}
}

// TestFenceOfAnOldMark: a Fence remembers a mark that another has raised since. A token between the
// two is newer than all that the first has seen, and stale.
func TestFenceOfAnOldMark(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	conn := dial(t, long, w.server.Addr())
	one, other := w.fence(conn), w.fence(conn)
	step := func(f *zookeeper.Fence, token lock.Token) error {
		_, err := f.Multi(context.Background(), "r", token)
		return err
	}
	require.NoError(t, step(one, 5))
	require.NoError(t, step(other, 10))
	staleBy(t, step(one, 7), "r", 7, 10)
	staleBy(t, step(w.fence(conn), 7), "r", 7, 10)
}

// TestFenceOps: an op that the server refuses takes the others, and the mark, with it.
func TestFenceOps(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	conn := dial(t, long, w.server.Addr())
	f, ctx := w.fence(conn), context.Background()
	path := w.root + "/v"
	create := &zk.CreateRequest{Path: path, Data: []byte("1"), Acl: zk.WorldACL(zk.PermAll)}
	_, err := f.Multi(ctx, "v", 5, create)
	require.NoError(t, err)
	replies, err := f.Multi(ctx, "v", 6, &zk.SetDataRequest{Path: path, Version: -1}, create)
	require.ErrorIs(t, err, zk.ErrNodeExists)
	require.NotErrorIs(t, err, lock.ErrStale)
	require.Len(t, replies, 2)
	require.ErrorIs(t, replies[1].Error, zk.ErrNodeExists)
	v, _, err := f.Get(ctx, "v", 5, path)
	require.NoError(t, err, "6 has done nothing")
	require.Equal(t, "1", string(v))
	_, _, err = f.Get(ctx, "v", 5, path+"/none")
	require.ErrorIs(t, err, zk.ErrNoNode)
	_, err = f.Multi(ctx, "v", 5, "no op")
	require.ErrorContains(t, err, "unknown operation")
	_, err = f.Multi(ctx, "v", 7, &zk.CheckVersionRequest{Path: path, Version: 77})
	require.ErrorIs(t, err, zk.ErrBadVersion, "the op's, not the mark's")
}

// TestFenceTakesItsData: a step is given up while there is no server, and sent when there is one again. It
// writes what it was called with, not what its caller has put into the same bytes since.
func TestFenceTakesItsData(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	var late atomic.Bool
	dialed, goOn := make(chan struct{}), make(chan struct{})
	proxy, watches := faultproxy.New(t, w.server.Addr()), new(gate)
	// With three servers to try the client does not tell what waits to be sent that there is none.
	conn, _, err := zk.Connect([]string{proxy.Addr(), proxy.Addr(), proxy.Addr()}, w.timeout, zk.WithLogger(silent{}), zk.WithLogInfo(false),
		zk.WithDialer(func(network, addr string, timeout time.Duration) (net.Conn, error) {
			if late.CompareAndSwap(true, false) {
				dialed <- struct{}{}
				<-goOn
			}
			return watches.dial(network, addr, timeout)
		}))
	require.NoError(t, err)
	t.Cleanup(func() { drain(conn); conn.Close() })
	storetest.Eventually(t, "a session", func() bool { return conn.State() == zk.StateHasSession })
	path, f := w.root+"/v", w.fence(conn)
	_, err = f.Multi(storetest.Bounded(t), "v", 1, &zk.CreateRequest{Path: path, Data: []byte("before"), Acl: zk.WorldACL(zk.PermAll)})
	require.NoError(t, err)

	late.Store(true)
	proxy.Break()
	<-dialed
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	data := []byte("as it was")
	_, err = f.Multi(ctx, "v", 1, &zk.SetDataRequest{Path: path, Data: data, Version: -1})
	require.ErrorIs(t, err, context.DeadlineExceeded)
	copy(data, "as it is!")
	close(goOn)
	storetest.Eventually(t, "the step", func() bool {
		v, _, err := conn.Get(path)
		return err == nil && string(v) != "before"
	})
	v, _, err := f.Get(storetest.Bounded(t), "v", 1, path)
	require.NoError(t, err)
	require.Equal(t, "as it was", string(v))
}

// TestFenceInvalid: nothing is sent.
func TestFenceInvalid(t *testing.T) {
	conn, _, err := zk.Connect([]string{"127.0.0.1:1"}, timeout, zk.WithLogger(silent{}), zk.WithLogInfo(false))
	require.NoError(t, err)
	defer conn.Close()
	ended, cancel := context.WithCancel(context.Background())
	ctx := context.Background()
	f := zookeeper.NewFence(conn)
	for _, c := range []struct {
		f        *zookeeper.Fence
		resource string
		token    lock.Token
	}{
		{f, "", 1},
		{f, "r", 0},
		{f, "r", lock.MaxToken + 1},
		{zookeeper.NewFence(nil), "r", 1},
		{zookeeper.NewFence(conn, nil), "r", 1},
		{zookeeper.NewFence(conn, zookeeper.WithRoot("x")), "r", 1},
	} {
		_, err := c.f.Multi(ctx, c.resource, c.token)
		require.ErrorIs(t, err, lock.ErrInvalid)
		_, _, err = c.f.Get(ctx, c.resource, c.token, "/v")
		require.ErrorIs(t, err, lock.ErrInvalid)
	}
	cancel()
	_, err = f.Multi(ended, "r", 1)
	require.ErrorIs(t, err, context.Canceled)
}
