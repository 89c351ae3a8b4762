package zookeeper_test

import (
	"context"
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// watchful is a connection that counts the watches of a node's children that it asks for.
type watchful struct {
	net.Conn
	watches *atomic.Int32
}

func (c watchful) Write(b []byte) (int, error) {
	const opGetChildren2 = 12
	if len(b) >= 12 && binary.BigEndian.Uint32(b[8:]) == opGetChildren2 && b[len(b)-1] == 1 {
		c.watches.Add(1)
	}
	return c.Conn.Write(b)
}

// TestOneWatch: waits that come and are given up share the one watch of the node in front,
// which cannot be taken back.
func TestOneWatch(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	b := w.open(t)
	watches, order := new(atomic.Int32), new(gate)
	conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		c, err := order.dial(network, addr, timeout)
		return watchful{c, watches}, err
	}, w.timeout, w.server.Addr())
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithSessionTimeout(w.timeout))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	blocker := storetest.Acquire(t, b, storetest.Request("k"))
	for range 5 {
		waiting := storetest.Waits(t, a, storetest.Request("k"))
		waiting.Cancel()
		waiting.End(t)
		storetest.Eventually(t, "its node to go", func() bool { return len(names(t, b.conn, w.root+"/k")) == 1 })
	}
	storetest.Eventually(t, "the watch", func() bool { return watches.Load() > 0 })
	require.EqualValues(t, 1, watches.Load())
	storetest.Release(t, b, blocker)
}

// TestWatchAfterABreak: a connection that broke and was made again between two looks at its state ends a
// Watch, since a change may have been missed.
func TestWatchAfterABreak(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	dialer := zookeeper.NewDialer(w.timeout, new(gate).dial)
	conn := dialBy(t, dialer.Dial, w.timeout, w.server.Addr())
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithDialer(dialer))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	began, watched := make(chan struct{}, 1), make(chan error, 1)
	go func() { watched <- a.Watch(storetest.Bounded(t), "k", func() { began <- struct{}{} }) }()
	storetest.Receive(t, began)
	again, err := dialer.Dial("tcp", w.server.Addr(), time.Second) // as zk.Conn does, which has a session again
	require.NoError(t, err)
	defer func() { _ = again.Close() }()
	require.ErrorIs(t, storetest.Receive(t, watched), zk.ErrConnectionClosed)
}

// TestWatchOfOneConnection: a Watch uses the ZooKeeper watch that one before it has left, unless that was asked
// for on a connection that there is no more. What changed meanwhile may never be told by that.
func TestWatchOfOneConnection(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	b := w.open(t)
	g := storetest.Acquire(t, b, storetest.Request("k")) // so that there is a container to watch
	asked, order := new(atomic.Int32), new(gate)
	dialer := zookeeper.NewDialer(w.timeout, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		c, err := order.dial(network, addr, timeout)
		return watchful{c, asked}, err
	})
	conn := dialBy(t, dialer.Dial, w.timeout, w.server.Addr())
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithDialer(dialer))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	watches := func() {
		ctx, cancel := context.WithCancel(storetest.Bounded(t))
		began, ended := make(chan struct{}, 1), make(chan error, 1)
		go func() { ended <- a.Watch(ctx, "k", func() { began <- struct{}{} }) }()
		storetest.Receive(t, began)
		cancel()
		require.ErrorIs(t, storetest.Receive(t, ended), context.Canceled)
	}
	for range 2 {
		watches()
		require.EqualValues(t, 1, asked.Load())
	}
	again, err := dialer.Dial("tcp", w.server.Addr(), time.Second) // as zk.Conn does, which has a session again
	require.NoError(t, err)
	defer func() { _ = again.Close() }()
	for range 2 {
		watches()
		require.EqualValues(t, 2, asked.Load())
	}
	require.Equal(t, 1, a.Armed())
	storetest.Release(t, b, g)
}

// TestWaitWithoutServer: a wait ends by itself when there is no server for long.
func TestWaitWithoutServer(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	a, b := w.open(t), w.lasting().open(t)
	blocker := storetest.Acquire(t, b, storetest.Request("k"))
	waiting := storetest.Waits(t, a, storetest.Request("k"))
	a.proxy.Cut()
	select {
	case <-waiting.Done:
	case <-time.After(zookeeper.Patience + 2*storetest.Patience):
		require.FailNow(t, "it waits on")
	}
	require.ErrorIs(t, waiting.Err, zk.ErrNoServer)
	require.Zero(t, a.Claims())
	_ = b.Release(storetest.Bounded(t), blocker) // its TTL may be over by now
}
