package zookeeper_test

import (
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

// expiring dials connections on which the next handshake says, once, that the session has
// expired. The server knows nothing of that, so the nodes of the session stay: as long as
// they may when a leader has ended a session and not yet deleted what it had.
type expiring struct {
	next    atomic.Bool
	dialed  chan struct{} // told of a dial that is held back
	gate    chan struct{} // holds back the dial of that handshake
	watches gate
}

type expiringConn struct {
	net.Conn
	e     *expiring
	reads int
}

func (e *expiring) dial(network, addr string, timeout time.Duration) (net.Conn, error) {
	conn, err := e.watches.dial(network, addr, timeout)
	if err == nil && e.next.Load() {
		e.dialed <- struct{}{}
		<-e.gate
	}
	return &expiringConn{Conn: conn, e: e}, err
}

func (c *expiringConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if c.reads++; c.reads == 2 && n >= 16 && c.e.next.CompareAndSwap(true, false) {
		clear(b[8:16]) // the session
	}
	return n, err
}

// TestSessionChangesUnderWay: requests are made in one session and sent in the next, while the
// nodes of the first are still there. Nothing is held by those.
func TestSessionChangesUnderWay(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	e := &expiring{dialed: make(chan struct{}), gate: make(chan struct{})}
	proxy := faultproxy.New(t, w.server.Addr())
	// With three servers to try the client does not tell what waits to be sent that there is none.
	conn, _, err := zk.Connect([]string{proxy.Addr(), proxy.Addr(), proxy.Addr()}, w.timeout,
		zk.WithLogger(silent{}), zk.WithLogInfo(false), zk.WithDialer(e.dial))
	require.NoError(t, err)
	t.Cleanup(func() { drain(conn); conn.Close() })
	storetest.Eventually(t, "a session", func() bool { return conn.State() == zk.StateHasSession })
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithSessionTimeout(w.timeout))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	witness := dial(t, long, w.server.Addr())

	// changes makes call send its request in the next session.
	writes := func(flights int) func() bool {
		return func() bool { f, q := a.Writes(); return f == flights && q == 0 }
	}
	changes := func(call func()) {
		old := conn.SessionID()
		storetest.Eventually(t, "the end of all writes", writes(0))
		e.next.Store(true)
		proxy.Break()
		<-e.dialed
		done := make(chan struct{})
		go func() { defer close(done); call() }()
		storetest.Eventually(t, "the request", writes(1))
		e.gate <- struct{}{}
		<-done
		require.NotEqual(t, old, conn.SessionID())
	}
	// good checks that g is held by a node of the session there is now.
	good := func(g lock.Grant) {
		line := names(t, witness, w.root+"/"+g.Key)
		require.Len(t, line, 1, g.Key)
		_, stat, err := witness.Get(w.root + "/" + g.Key + "/" + line[0])
		require.NoError(t, err)
		require.Equal(t, conn.SessionID(), stat.EphemeralOwner, "%s is held by a node of an old session", g.Key)
		require.Equal(t, g.Token, lock.Token(stat.Czxid))
		storetest.Release(t, a, storetest.Renew(t, a, g))
	}

	ctx := storetest.Bounded(t)
	g := storetest.Acquire(t, a, storetest.Request("renewed"))
	changes(func() { _, err = a.Renew(ctx, g) })
	require.Equal(t, lock.ReasonExpired, storetest.Lost(t, err))

	g = storetest.Acquire(t, a, storetest.Request("released"))
	waiting := storetest.Waits(t, a, storetest.Request("released"))
	changes(func() { _ = a.Release(ctx, g) })
	good(waiting.Granted(t))

	storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("acquired")))
	changes(func() { g, err = a.Acquire(ctx, storetest.Request("acquired")) })
	require.NoError(t, err)
	good(g)
}
