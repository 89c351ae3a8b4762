package zookeeper_test

import (
	"bytes"
	"net"
	"regexp"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// renumbered is a connection that shows all nodes in line with that sequence number.
type renumbered struct {
	net.Conn
	number []byte
	real   *sync.Map // by owner
}

// numbered matches the names of nodes from the owner on.
var numbered = regexp.MustCompile(`([A-Z2-7]{26})\.(-?\d+)`)

func (c renumbered) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for _, at := range numbered.FindAllSubmatchIndex(b[:n], -1) {
		c.real.Store(string(b[at[2]:at[3]]), string(b[at[4]:at[5]]))
		copy(b[at[4]:at[5]], c.number)
	}
	return n, err
}

func (c renumbered) Write(b []byte) (int, error) {
	b = bytes.Clone(b)
	for _, at := range numbered.FindAllSubmatchIndex(b, -1) {
		if number, ok := c.real.Load(string(b[at[2]:at[3]])); ok {
			copy(b[at[4]:at[5]], number.(string))
		}
	}
	return c.Conn.Write(b)
}

// TestNumbersSpent: a container whose sequence numbers are used up goes on giving the last one, or, to
// creations that are under way together, negative ones. They do not tell who came first, so they
// are refused. The container goes when nobody is in line, and with it the trouble.
func TestNumbersSpent(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	b := w.open(t)
	for _, number := range []string{"2147483647", "-147483648"} {
		order, owners := new(gate), new(sync.Map)
		conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
			c, err := order.dial(network, addr, timeout)
			return renumbered{c, []byte(number), owners}, err
		}, w.timeout, w.server.Addr())
		a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithSessionTimeout(w.timeout))
		t.Cleanup(func() { require.NoError(t, a.Close()) })
		refused := func(wait bool) {
			req := storetest.Request("k")
			req.Wait = wait
			_, err := a.Acquire(storetest.Bounded(t), req)
			require.ErrorContains(t, err, w.root+"/k")
			require.ErrorContains(t, err, "sequence numbers")
			require.NotErrorIs(t, err, lock.ErrHeld)
		}
		g := storetest.Acquire(t, b, storetest.Request("k"))
		for _, wait := range []bool{false, true} {
			refused(wait)
			storetest.Eventually(t, "the end of its node", func() bool { return len(names(t, b.conn, w.root+"/k")) == 1 })
			g = storetest.Renew(t, b, g)
		}
		storetest.Release(t, b, g)
		refused(false)
		storetest.Eventually(t, "the container's end", func() bool { return len(names(t, b.conn, w.root)) == 0 })
		storetest.Release(t, b, storetest.Acquire(t, b, storetest.Request("k")))
		require.Zero(t, a.Claims())
	}
}
