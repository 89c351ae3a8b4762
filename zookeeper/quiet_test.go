package zookeeper_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/zookeeper"
)

// asking is a connection that counts its requests, but not the session's pings.
type asking struct {
	net.Conn
	asked *atomic.Int64
}

func (c asking) Write(b []byte) (int, error) {
	const opPing = 11
	if len(b) < 12 || binary.BigEndian.Uint32(b[8:]) != opPing {
		c.asked.Add(1)
	}
	return c.Conn.Write(b)
}

// TestWatchIsQuiet: a Watch costs no request while nothing changes.
func TestWatchIsQuiet(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	asked := new(atomic.Int64)
	conn := dialBy(t, func(network, addr string, timeout time.Duration) (net.Conn, error) {
		c, err := net.DialTimeout(network, addr, timeout)
		return asking{c, asked}, err
	}, w.timeout, w.server.Addr())
	a := zookeeper.New(conn, zookeeper.WithRoot(w.root), zookeeper.WithTick(tick), zookeeper.WithSessionTimeout(w.timeout))
	t.Cleanup(func() { require.NoError(t, a.Close()) })
	storetest.WatchIsQuiet(t, a, w.open(t), asked.Load)
}

// TestWatchesGo: of keys that were watched once, and changed after that, nothing is kept.
func TestWatchesGo(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	for i := range 100 {
		key := fmt.Sprint("k", i)
		ctx, cancel := context.WithCancel(storetest.Bounded(t))
		changed, done := make(chan struct{}, 1), make(chan error)
		go func() { done <- a.Watch(ctx, key, func() { changed <- struct{}{} }) }()
		storetest.Receive(t, changed)
		cancel()
		require.ErrorIs(t, storetest.Receive(t, done), context.Canceled)
		storetest.Release(t, b, storetest.Acquire(t, b, storetest.Request(key)))
	}
	require.Less(t, a.Armed(), 50)
}
