package zookeeper_test

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// writes reports whether p has that many transactions under way, and writes that wait.
func (p *process) writes(flights, queued int) func() bool {
	return func() bool {
		f, q := p.Writes()
		return f == flights && q == queued
	}
}

// together makes calls, each of one write, that share a transaction: they come while the
// renewal of g is under way.
func (p *process) together(tb testing.TB, g lock.Grant, calls ...func()) {
	tb.Helper()
	storetest.Eventually(tb, "the end of all writes", p.writes(0, 0))
	thaw := p.proxy.Freeze()
	defer thaw()
	var all sync.WaitGroup
	all.Go(func() {
		if _, err := p.Renew(storetest.Bounded(tb), g); err != nil {
			tb.Error(err)
		}
	})
	storetest.Eventually(tb, "a write under way", p.writes(1, 0))
	for _, call := range calls {
		all.Go(call)
	}
	storetest.Eventually(tb, "all calls", p.writes(1, len(calls)))
	thaw()
	all.Wait()
}

// TestLargeBatch: writes that come together are the largest that there are. A server breaks the
// connection of a request that is too long.
func TestLargeBatch(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	w.timeout = 4 * long // 40 of them, one after the other
	b := w.open(t)
	proxy, watches, connections := faultproxy.New(t, w.server.Addr()), new(gate), new(atomic.Int32)
	conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		connections.Add(1)
		return watches.dial(network, addr, timeout)
	}, w.timeout, proxy.Addr())
	a := &process{zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithSessionTimeout(w.timeout)), conn, proxy, w}
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	const keys = 40
	bulky := func(i int) lock.Request {
		req := storetest.Request(fmt.Sprint(strings.Repeat("/", lock.MaxKeyLen-2), 10+i))
		req.Metadata = map[string]string{"k": strings.Repeat("\x01", lock.MaxMetadataLen-1)} // six bytes each as JSON
		return req
	}
	for i := range keys { // so that the containers are there
		storetest.Release(t, a, storetest.Acquire(t, a, bulky(i)))
	}
	acquired, waiting := make([]lock.Grant, keys), make([]*storetest.Waiting, keys)
	var acquires, releases []func()
	for i := range keys {
		acquires = append(acquires, func() {
			var err error
			if acquired[i], err = a.Acquire(storetest.Bounded(t), bulky(i)); err != nil {
				t.Error(err)
			}
		})
		releases = append(releases, func() {
			if err := a.Release(storetest.Bounded(t), acquired[i]); err != nil {
				t.Error(err)
			}
		})
	}
	other := storetest.Acquire(t, a, storetest.Request("other"))
	a.together(t, other, acquires...)
	for i := range keys {
		waiting[i] = storetest.Waits(t, a, bulky(i))
	}
	a.together(t, other, releases...) // each hands over
	for i := range keys {
		storetest.Holds(t, b, waiting[i].Granted(t))
	}
	require.EqualValues(t, 1, connections.Load())
}

// TestReleaseSent: a release that was given up after it was sent has deleted the node, for all
// that is known. So the next one takes it for its own that the node is gone.
func TestReleaseSent(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	heal := a.proxy.HoldReplies()
	ctx, cancel := context.WithCancel(context.Background())
	result := make(chan error, 1)
	go func() { result <- a.Release(ctx, g) }()
	storetest.Eventually(t, "the release", func() bool { return len(names(t, b.conn, w.root+"/k")) == 0 })
	cancel()
	require.ErrorIs(t, <-result, context.Canceled)
	a.proxy.Break()
	heal()
	require.NoError(t, a.Release(storetest.Bounded(t), g))
	require.Zero(t, a.Claims())
}
