package zookeeper_test

import (
	"context"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/go-zookeeper/zk"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// TestOutageLeavesNothing: claims end while no server is there, for longer than calls are
// repeated, but not for so long that the session ends. Their nodes, which would live as long
// as that, go all the same: of a grant that was not renewed, of a wait and of a creation that
// were given up, and of a grant whose release was. A grant that lives through it is watched
// after it.
func TestOutageLeavesNothing(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.timeout = 2 * long
	a, b := w.open(t), w.open(t)
	session := a.conn.SessionID()
	keys := []string{"unrenewed", "waiting", "creating", "releasing"}
	for _, key := range keys {
		storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request(key)))
	}
	blocker := storetest.Acquire(t, b, storetest.Request("waiting"))
	waiting := storetest.Waits(t, a, storetest.Request("waiting"))
	storetest.Acquire(t, a, storetest.Lasting(storetest.Request("unrenewed"), 3*time.Second))
	releasing := storetest.Acquire(t, a, storetest.Lasting(storetest.Request("releasing"), 3*time.Second))
	lost := make(chan lock.LostReason, 1)
	watched := storetest.Request("watched")
	watched.Lost = func(r lock.LostReason) { lost <- r }
	g := storetest.Acquire(t, a, watched) // the watch is due when there is no server
	deliver := a.proxy.HoldReplies()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { _, err := a.Acquire(ctx, storetest.Request("creating")); result <- err }()
	storetest.Eventually(t, "the node", func() bool { return len(names(t, b.conn, w.root+"/creating")) == 1 })

	heal := a.proxy.Cut()
	deliver()
	cancel()
	require.ErrorIs(t, <-result, context.Canceled)
	soon, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, a.Release(soon, releasing), context.DeadlineExceeded)
	waiting.Cancel()
	waiting.End(t)
	time.Sleep(zookeeper.Patience + 4*time.Second)
	storetest.Release(t, b, blocker)
	for _, key := range keys {
		require.Len(t, names(t, b.conn, w.root+"/"+key), 1, key)
	}
	heal()
	for _, key := range keys {
		storetest.Eventually(t, "the end of the node of "+key, func() bool { return len(names(t, b.conn, w.root+"/"+key)) == 0 })
	}
	require.Equal(t, session, a.conn.SessionID())
	require.NoError(t, b.ForceRelease(storetest.Bounded(t), g.Key, g.Owner))
	select {
	case r := <-lost:
		require.Equal(t, lock.ReasonForced, r)
	case <-time.After(storetest.Patience):
		require.FailNow(t, "the loss was not told")
	}
	require.Zero(t, a.Claims())
}

// TestReleaseNotSent: a release that was given up before it was sent has not deleted the node,
// so the next one that finds it gone has lost it.
func TestReleaseNotSent(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	other := storetest.Acquire(t, a, storetest.Request("other"))
	writes := func(flights int) func() bool {
		return func() bool { f, q := a.Writes(); return f == flights && q == 0 }
	}
	storetest.Eventually(t, "the end of all writes", writes(0))
	thaw := a.proxy.Freeze()
	renewed := make(chan error, 1)
	go func() { _, err := a.Renew(storetest.Bounded(t), other); renewed <- err }()
	storetest.Eventually(t, "a write under way", writes(1))
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, a.Release(ctx, g), context.DeadlineExceeded)
	thaw()
	require.NoError(t, <-renewed)
	require.NoError(t, b.ForceRelease(storetest.Bounded(t), g.Key, g.Owner))
	storetest.Lost(t, a.Release(storetest.Bounded(t), g))
	storetest.Release(t, a, other)
}

// fragile is a connection on which the next write fails when broken says so.
type fragile struct {
	net.Conn
	broken *atomic.Bool
}

func (c fragile) Write(b []byte) (int, error) {
	if c.broken.CompareAndSwap(true, false) {
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
	}
	return c.Conn.Write(b)
}

// TestWriteFails: zk.Conn passes on the error of its socket. It is one more connection that
// broke: the call goes on with the next.
func TestWriteFails(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	broken, watched := new(atomic.Bool), new(gate)
	conn, _, err := zk.Connect([]string{w.server.Addr()}, w.timeout, zk.WithLogger(silent{}), zk.WithLogInfo(false),
		zk.WithDialer(func(network, addr string, timeout time.Duration) (net.Conn, error) {
			c, err := watched.dial(network, addr, timeout)
			return fragile{c, broken}, err
		}))
	require.NoError(t, err)
	t.Cleanup(func() { drain(conn); conn.Close() })
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithSessionTimeout(w.timeout))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	b := w.open(t)
	fails := func(call func()) {
		broken.Store(true)
		call()
		require.False(t, broken.Load(), "it has written nothing")
	}
	storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("k")))
	var g lock.Grant
	fails(func() { g = storetest.Acquire(t, a, storetest.Request("k")) })
	fails(func() { g = storetest.Renew(t, a, g) })
	fails(func() { storetest.Release(t, a, g) })
	blocker := storetest.Acquire(t, b, storetest.Request("k"))
	waiting := storetest.Waits(t, a, storetest.Request("k"))
	fails(func() {
		storetest.Release(t, b, blocker)
		g = waiting.Granted(t)
	})
	storetest.Release(t, a, g)
}

// TestHandOverToMany: a release hands over to as many readers as one request may tell of.
// The others look for themselves.
func TestHandOverToMany(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a := w.open(t)
	const readers = 300
	g := storetest.Acquire(t, a, storetest.Request("k"))
	errs := make(chan error, readers)
	for range readers {
		go func() {
			req := storetest.Shared(storetest.Request("k"))
			req.Wait = true
			req.Metadata = map[string]string{"why": strings.Repeat("x", lock.MaxMetadataLen-100)}
			_, err := a.Acquire(storetest.Bounded(t), req)
			errs <- err
		}()
	}
	storetest.Eventually(t, "the line", func() bool { return len(names(t, a.conn, w.root+"/k")) == 1+readers })
	storetest.Release(t, a, g)
	for range readers {
		require.NoError(t, <-errs)
	}
}

// TestBrokenConnections: zk.Conn refuses all that is asked while it has gone through its
// servers, which with one of them is after each broken connection.
func TestBrokenConnections(t *testing.T) {
	t.Parallel()
	p := sharedWorld(t).lasting().open(t)
	storetest.BrokenConnections(t, p, p.proxy.Break)
}
