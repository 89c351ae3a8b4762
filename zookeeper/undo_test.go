package zookeeper_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync"
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

// TestReleaseLate: a release that was given up ends the claim when its reply comes, be it that
// the node was deleted, or that it was gone.
func TestReleaseLate(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.timeout = 2 * long // or the claims end with their TTL
	a, b := w.open(t), w.open(t)
	for _, gone := range []bool{false, true} {
		g := storetest.Acquire(t, a, storetest.Request("k"))
		storetest.Eventually(t, "the end of all writes", a.writes(0, 0))
		thaw := a.proxy.Freeze()
		ctx, cancel := context.WithCancel(context.Background())
		result := make(chan error, 1)
		go func() { result <- a.Release(ctx, g) }()
		storetest.Eventually(t, "the release", a.writes(1, 0))
		if gone {
			require.NoError(t, b.ForceRelease(storetest.Bounded(t), g.Key, g.Owner))
		}
		cancel()
		require.ErrorIs(t, <-result, context.Canceled)
		thaw()
		storetest.Eventually(t, "the end of the claim", func() bool { return a.Claims() == 0 })
		require.Empty(t, names(t, b.conn, w.root+"/k"))
	}
}

// TestUndoUnderWay: an acquisition is undone while its creation is under way. It is refused
// then, and leaves nothing, even if the undo is given up before it has looked for anything.
func TestUndoUnderWay(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("k")))
	for _, givenUp := range []bool{false, true} {
		storetest.Eventually(t, "the end of all writes", a.writes(0, 0))
		thaw := a.proxy.Freeze()
		req, result, undone := storetest.Request("k"), make(chan error, 1), make(chan error, 1)
		go func() { _, err := a.Acquire(storetest.Bounded(t), req); result <- err }()
		storetest.Eventually(t, "the creation", a.writes(1, 0))
		ctx, cancel := context.WithCancel(storetest.Bounded(t))
		go func() { undone <- a.Release(ctx, lock.Grant{Key: req.Key, Owner: req.Owner}) }()
		storetest.Eventually(t, "the undo", a.writes(1, 1))
		if givenUp {
			cancel()
			require.ErrorIs(t, <-undone, context.Canceled)
		}
		thaw()
		require.Error(t, <-result)
		if !givenUp {
			require.NoError(t, <-undone)
		}
		cancel()
		storetest.Eventually(t, "the end of the node", func() bool { return len(names(t, b.conn, w.root+"/k")) == 0 })
		require.Zero(t, a.Claims())
	}
}

// TestLateCreation: an Acquire is given up while its creation is under way, and nobody undoes it. The
// node goes when the reply comes: it would live as long as the session.
func TestLateCreation(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("k")))
	for _, wait := range []bool{false, true} {
		deliver := a.proxy.HoldReplies()
		ctx, cancel := context.WithCancel(storetest.Bounded(t))
		req, result := storetest.Request("k"), make(chan error, 1)
		req.Wait = wait
		go func() { _, err := a.Acquire(ctx, req); result <- err }()
		storetest.Eventually(t, "the node", func() bool { return len(names(t, b.conn, w.root+"/k")) == 1 })
		cancel()
		require.ErrorIs(t, <-result, context.Canceled)
		deliver()
		storetest.Eventually(t, "the end of the node", func() bool { return len(names(t, b.conn, w.root+"/k")) == 0 })
		require.Zero(t, a.Claims())
	}
}

// TestUndoInDoubt: an Acquire is given up while it asks whether its creation was done. The
// node goes all the same.
func TestUndoInDoubt(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("k")))
	deliver := a.proxy.HoldReplies()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	result := make(chan error, 1)
	go func() { _, err := a.Acquire(ctx, storetest.Request("k")); result <- err }()
	storetest.Eventually(t, "the node", func() bool { return len(names(t, b.conn, w.root+"/k")) == 1 })
	heal := a.proxy.Cut()
	deliver()
	storetest.Eventually(t, "the break", func() bool { return a.conn.State() != zk.StateHasSession })
	cancel() // before it has heard that the outcome is unknown, or after
	require.ErrorIs(t, <-result, context.Canceled)
	heal()
	storetest.Eventually(t, "the end of the node", func() bool { return len(names(t, b.conn, w.root+"/k")) == 0 })
	require.Zero(t, a.Claims())
}

// TestDoubtIsOfOneProcess: an Acquire is given up with an unknown outcome. What it has left goes. What its owner
// has by way of another process stays.
func TestDoubtIsOfOneProcess(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("k")))
	req := storetest.Request("k")
	g := storetest.Acquire(t, b, req)
	deliver := a.proxy.HoldReplies()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	result := make(chan error, 1)
	go func() { _, err := a.Acquire(ctx, req); result <- err }()
	storetest.Eventually(t, "the node", func() bool { return len(names(t, b.conn, w.root+"/k")) == 2 })
	heal := a.proxy.Cut()
	deliver()
	storetest.Eventually(t, "the break", func() bool { return a.conn.State() != zk.StateHasSession })
	cancel()
	require.ErrorIs(t, <-result, context.Canceled)
	heal()
	storetest.Eventually(t, "the end of the node", func() bool { return len(names(t, b.conn, w.root+"/k")) == 1 })
	storetest.Holds(t, b, g)
	storetest.Release(t, b, g)
}

// TestUndoIsNoLoss: the end of a grant that its owner undoes is no loss, though the event that
// its node is gone comes before the reply.
func TestUndoIsNoLoss(t *testing.T) {
	t.Parallel()
	a := sharedWorld(t).lasting().open(t)
	const n = 40
	var lost atomic.Int32
	var grants []lock.Grant
	for i := range n {
		req := storetest.Request(fmt.Sprint("k", i))
		req.Lost = func(lock.LostReason) { lost.Add(1) }
		grants = append(grants, storetest.Acquire(t, a, req))
	}
	storetest.Eventually(t, "the watches", func() bool { return a.Watches() == n })
	var all sync.WaitGroup
	for _, g := range grants {
		all.Go(func() {
			if err := a.Release(storetest.Bounded(t), lock.Grant{Key: g.Key, Owner: g.Owner}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	storetest.Eventually(t, "the end of the watches", func() bool { return a.Watches() == 0 })
	require.Zero(t, lost.Load())
	require.Zero(t, a.Claims())
}

// TestReleaseIsNoLoss: the TTL of a grant is over while its release is under way. That is no
// loss to tell.
func TestReleaseIsNoLoss(t *testing.T) {
	t.Parallel()
	a := sharedWorld(t).lasting().open(t)
	lost := make(chan lock.LostReason, 1)
	req := storetest.Lasting(storetest.Request("k"), 5*time.Second) // until the release has begun
	req.Lost = func(r lock.LostReason) { lost <- r }
	g := storetest.Acquire(t, a, req)
	storetest.Eventually(t, "the end of all writes", a.writes(0, 0))
	thaw := a.proxy.Freeze()
	result := make(chan error, 1)
	go func() { result <- a.Release(storetest.Bounded(t), g) }()
	storetest.Eventually(t, "the end of the TTL", func() bool { return a.Claims() == 0 })
	thaw()
	require.NoError(t, <-result)
	require.Empty(t, lost)
}

// TestHandOverRefused: the node of who is next has gone, and its Acquire does not know it yet.
// The release is done all the same.
func TestHandOverRefused(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	waiting := storetest.Waits(t, a, storetest.Request("k"))
	for _, name := range names(t, b.conn, w.root+"/k") {
		if name[1:1+len(waiting.Owner)] == waiting.Owner {
			require.NoError(t, b.conn.Delete(w.root+"/k/"+name, -1))
		}
	}
	storetest.Release(t, a, g)
	next := waiting.Granted(t)
	storetest.Holds(t, b, next)
	storetest.Release(t, a, next)
	require.Zero(t, a.Claims())
}

// beforeWrites is a connection that calls f before it sends a transaction.
type beforeWrites struct {
	net.Conn
	f func()
}

func (c beforeWrites) Write(b []byte) (int, error) {
	const opMulti = 14
	if len(b) >= 12 && binary.BigEndian.Uint32(b[8:]) == opMulti { // length, xid, operation
		c.f()
	}
	return c.Conn.Write(b)
}

// TestForceReleaseReplyLost: the deletion of another process's node is repeated, and takes it
// for its own that the node is gone.
func TestForceReleaseReplyLost(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a := w.open(t)
	proxy, watches, heal := faultproxy.New(t, w.server.Addr()), new(gate), make(chan func(), 1)
	var armed atomic.Bool
	conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		c, err := watches.dial(network, addr, timeout)
		return beforeWrites{c, func() {
			if armed.CompareAndSwap(true, false) {
				heal <- proxy.HoldReplies()
			}
		}}, err
	}, w.timeout, proxy.Addr())
	b := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithSessionTimeout(w.timeout))
	t.Cleanup(func() { require.NoError(t, b.Close()) })
	for name, release := range map[string]func(lock.Grant) error{
		"ForceRelease": func(g lock.Grant) error { return b.ForceRelease(storetest.Bounded(t), g.Key, g.Owner) },
		"Release":      func(g lock.Grant) error { return b.Release(storetest.Bounded(t), g) },
	} {
		g := storetest.Acquire(t, a, storetest.Request("k"))
		armed.Store(true)
		result := make(chan error, 1)
		go func() { result <- release(g) }()
		deliver := <-heal
		storetest.Eventually(t, "the release", func() bool { return len(names(t, a.conn, w.root+"/k")) == 0 })
		proxy.Break()
		deliver()
		require.NoError(t, <-result, name)
		storetest.Lost(t, a.Release(storetest.Bounded(t), g))
	}
}
