package zookeeper_test

import (
	"context"
	"encoding/binary"
	"net"
	"strings"
	"sync"
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
	w.timeout = 4 * long
	a, b := w.open(t), w.open(t)
	session := a.conn.SessionID()
	keys := []string{"unrenewed", "waiting", "creating", "releasing"}
	for _, key := range keys {
		storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request(key)))
	}
	blocker := storetest.Acquire(t, b, storetest.Request("waiting"))
	waiting := storetest.Waits(t, a, storetest.Request("waiting"))
	const ttl = 15 * time.Second // time enough for what comes before the outage
	storetest.Acquire(t, a, storetest.Lasting(storetest.Request("unrenewed"), ttl))
	releasing := storetest.Acquire(t, a, storetest.Lasting(storetest.Request("releasing"), ttl))
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
	time.Sleep(zookeeper.Patience + ttl + time.Second)
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

// TestBrokenInARow: a wait goes on, however many connections break one after another, as long as
// they do for less than lock.Patience.
func TestBrokenInARow(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	broken, watched := new(atomic.Int32), new(gate)
	addr := w.server.Addr() // With three servers to try the client does not pause before it connects again.
	conn, _, err := zk.Connect([]string{addr, addr, addr}, w.timeout, zk.WithLogger(silent{}), zk.WithLogInfo(false),
		zk.WithDialer(func(network, addr string, timeout time.Duration) (net.Conn, error) {
			c, err := watched.dial(network, addr, timeout)
			return breaking{c, broken}, err
		}))
	require.NoError(t, err)
	t.Cleanup(func() { drain(conn); conn.Close() })
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithSessionTimeout(w.timeout))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	b := w.open(t)
	blocker := storetest.Acquire(t, b, storetest.Request("k"))
	waiting := storetest.Waits(t, a, storetest.Lasting(storetest.Request("k"), 300*time.Millisecond))
	const inARow = 40
	broken.Store(inARow)
	storetest.Eventually(t, "so many looks", func() bool { return broken.Load() <= 0 })
	storetest.Release(t, b, blocker)
	storetest.Release(t, a, waiting.Granted(t))
}

// breaking is a connection that breaks when a line is looked at, as often as left says.
type breaking struct {
	net.Conn
	left *atomic.Int32
}

func (c breaking) Write(b []byte) (int, error) {
	if len(b) >= 12 && b[len(b)-1] == 0 { // length, xid, operation, and no watch
		switch binary.BigEndian.Uint32(b[8:]) {
		case opExists, opGetChildren2:
			if c.left.Add(-1) >= 0 {
				return 0, &net.OpError{Op: "write", Net: "tcp", Err: syscall.EPIPE}
			}
		}
	}
	return c.Conn.Write(b)
}

const (
	opExists       = 3
	opGetData      = 4
	opGetChildren2 = 12
	opMulti        = 14
)

// TestFirstLookFails: the connection breaks as a waiter that is in line reads who is in front. It is
// told of that by its next look, and knows then that the key is held.
func TestFirstLookFails(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	lost := b.proxy.Lose(asks(opGetData, "/k/").Nth(1))
	req, told, result := storetest.Request("k"), make(chan lock.Record, 1), make(chan error, 1)
	req.Wait, req.Waiting = true, func(r lock.Record) { told <- r }
	ctx, cancel := context.WithCancel(storetest.Bounded(t))
	defer cancel()
	go func() { _, err := b.Acquire(ctx, req); result <- err }()
	storetest.Receive(t, lost.Hit())
	rec := storetest.Receive(t, told)
	require.Equal(t, "k", rec.Key)
	require.Equal(t, 1, rec.HolderCount)
	require.Equal(t, g.Owner, rec.Holders[0].Owner)
	cancel()
	require.ErrorIs(t, storetest.Receive(t, result), lock.ErrHeld)
	storetest.Release(t, a, g)
}

// TestThrottled: a server under heavy load says that it has not executed a request. It is asked
// again; who waits goes on for longer than a call does.
func TestThrottled(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	throttled, watched := &throttling{}, new(gate)
	conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		c, err := watched.dial(network, addr, timeout)
		return &throttledConn{Conn: c, of: throttled}, err
	}, w.timeout, w.server.Addr())
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithSessionTimeout(w.timeout))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	b := w.open(t)
	twice := func(call func()) {
		throttled.left.Store(2)
		call()
		require.LessOrEqual(t, throttled.left.Load(), int32(0))
	}
	var g lock.Grant
	twice(func() { g = storetest.Acquire(t, a, storetest.Request("k")) })
	twice(func() { g = storetest.Renew(t, a, g) })
	twice(func() { storetest.Release(t, a, g) })
	g = storetest.Acquire(t, b, storetest.Request("k"))
	waiting := storetest.Waits(t, a, storetest.Request("k"))
	throttled.left.Store(15)
	storetest.Release(t, b, g)
	g = waiting.Granted(t)
	require.LessOrEqual(t, throttled.left.Load(), int32(0))
	storetest.Release(t, a, g)
}

// throttling makes the next transactions be refused.
type throttling struct {
	left atomic.Int32
	xids sync.Map // of those
}

// throttledConn sends the server something else in place of a transaction, and makes the error of
// its reply THROTTLEDOP.
type throttledConn struct {
	net.Conn
	of *throttling
}

func (c *throttledConn) Write(b []byte) (int, error) {
	if len(b) < 12 || binary.BigEndian.Uint32(b[8:]) != opMulti || c.of.left.Add(-1) < 0 { // length, xid, operation
		return c.Conn.Write(b)
	}
	c.of.xids.Store([4]byte(b[4:8]), true)
	exists := append([]byte{0, 0, 0, 14}, b[4:8]...)
	exists = append(exists, 0, 0, 0, opExists, 0, 0, 0, 1, '/', 0) // the path, and no watch
	_, err := c.Conn.Write(exists)
	return len(b), err
}

func (c *throttledConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if n >= 16 { // xid, zxid, error, after the length has been read by itself
		if _, is := c.of.xids.LoadAndDelete([4]byte(b[:4])); is {
			const throttledOp = -127
			binary.BigEndian.PutUint32(b[12:], 1<<32+throttledOp)
		}
	}
	return n, err
}

// TestHandOverToMany: many readers are next. They look for themselves.
func TestHandOverToMany(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.timeout = 4 * long // so many line up one after the other
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
	for n := 50; n <= readers; n += 50 {
		storetest.Eventually(t, "the line", func() bool { return len(names(t, a.conn, w.root+"/k")) > n })
		g = storetest.Renew(t, a, g)
	}
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
