package zookeeper_test

import (
	"encoding/binary"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// timed is a connection that notes when the last transaction was sent.
type timed struct {
	net.Conn
	sent *atomic.Pointer[time.Time]
}

func (c timed) Write(b []byte) (int, error) {
	const opMulti = 14
	if len(b) >= 12 && binary.BigEndian.Uint32(b[8:]) == opMulti { // length, xid, operation
		now := time.Now()
		c.sent.Store(&now)
	}
	return c.Conn.Write(b)
}

// TestStartIsBeforeSending: a Start is no later than the sending of the request that proved the
// grant. The suite cannot see one that is, since here it is a session that ends a TTL.
func TestStartIsBeforeSending(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	b := w.open(t)
	sent, watches := new(atomic.Pointer[time.Time]), new(gate)
	conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		c, err := watches.dial(network, addr, timeout)
		return timed{c, sent}, err
	}, w.timeout, w.server.Addr())
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithSessionTimeout(w.timeout))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	early := func(what string, g lock.Grant) lock.Grant {
		require.False(t, g.Start.After(*sent.Load()), "%s: Start is %v later", what, g.Start.Sub(*sent.Load()))
		return g
	}
	storetest.Release(t, a, early("a new key", storetest.Acquire(t, a, storetest.Request("k"))))
	g := early("a grant", storetest.Acquire(t, a, storetest.Request("k")))
	g = early("a renewal", storetest.Renew(t, a, g))
	waiting := storetest.Waits(t, a, storetest.Request("k"))
	storetest.Release(t, a, g)
	storetest.Release(t, a, early("a hand-over", waiting.Granted(t)))
	g = storetest.Acquire(t, b, storetest.Request("k"))
	waiting = storetest.Waits(t, a, storetest.Request("k"))
	storetest.Release(t, b, g)
	storetest.Release(t, a, early("a wait for another process", waiting.Granted(t)))
}

// TestStartAfterOurs: who waits right behind a claim of its own Locker may do so without ever
// looking at the line, and be woken with nothing handed over. The grant begins after the wait
// all the same, and not when the wait did.
func TestStartAfterOurs(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	for name, ends := range map[string]struct {
		shared bool
		end    func(lock.Grant)
	}{
		"the release of a reader": {true, func(g lock.Grant) { storetest.Release(t, a, g) }},
		"a forced release":        {false, func(g lock.Grant) { require.NoError(t, b.ForceRelease(storetest.Bounded(t), g.Key, g.Owner)) }},
		"another's release":       {false, func(g lock.Grant) { storetest.Release(t, b, g) }},
	} {
		req := storetest.Request("k")
		req.Shared = ends.shared
		first := storetest.Acquire(t, a, req)
		granted := make(chan lock.Grant, 1)
		go func() {
			req := storetest.Request("k")
			req.Wait = true // and nobody to tell that it does
			g, err := a.Acquire(storetest.Bounded(t), req)
			if err != nil {
				t.Error(err)
			}
			granted <- g
		}()
		storetest.Eventually(t, "the line", func() bool { return len(names(t, b.conn, w.root+"/k")) == 2 })
		storetest.Eventually(t, "it to wait", func() bool { return a.Behind() == 1 })
		select {
		case <-granted:
			require.FailNow(t, "it does not wait")
		case <-time.After(50 * time.Millisecond): // it has the reply by now, as a rule
		}
		before := time.Now()
		ends.end(first)
		g := <-granted
		require.False(t, g.Start.Before(before), "after %s: Start is %v before it", name, before.Sub(g.Start))
		storetest.Release(t, a, g)
	}
}
