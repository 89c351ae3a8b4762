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

// TestManyHandOvers: releases that come together hand over to so many readers, of keys so
// long, that one request could not tell of all. A server breaks the connection of one that
// is too long.
func TestManyHandOvers(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	b := w.open(t)
	proxy, watches, connections := faultproxy.New(t, w.server.Addr()), new(gate), new(atomic.Int32)
	conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		connections.Add(1)
		return watches.dial(network, addr, timeout)
	}, w.timeout, proxy.Addr())
	a := &process{zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithSessionTimeout(w.timeout)), conn, proxy, w}
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	const keys, readers = 16, 50
	other := storetest.Acquire(t, a, storetest.Request("other"))
	errs := make(chan error, keys*readers)
	var releases []func()
	for i := range keys {
		key := fmt.Sprint(strings.Repeat("/", lock.MaxKeyLen-2), 10+i)
		g := storetest.Acquire(t, a, storetest.Request(key))
		for range readers {
			go func() {
				req := storetest.Shared(storetest.Request(key))
				req.Wait = true
				_, err := a.Acquire(storetest.Bounded(t), req)
				errs <- err
			}()
		}
		releases = append(releases, func() {
			if err := a.Release(storetest.Bounded(t), g); err != nil {
				t.Error(err)
			}
		})
	}
	storetest.Eventually(t, "the lines", func() bool {
		for _, name := range names(t, b.conn, w.root) {
			if name != "other" && len(names(t, b.conn, w.root+"/"+name)) != 1+readers {
				return false
			}
		}
		return true
	})
	a.together(t, other, releases...)
	for range keys * readers {
		require.NoError(t, <-errs)
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
