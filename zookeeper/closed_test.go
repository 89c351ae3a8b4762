package zookeeper_test

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/locktest/faultproxy"
)

// TestClientClosedFirst: closing zk.Conn ends the session, so another process has the key at once. The
// holder is told, and who waits or asks gets ErrClosed, without the patience that an outage gets.
func TestClientClosedFirst(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	ctx := storetest.Bounded(t)
	c := lock.New(a, lock.WithTTL(10*time.Second))
	lease, err := c.Lock(ctx, "held")
	require.NoError(t, err)
	storetest.Acquire(t, b, storetest.Request("taken"))
	waiting := storetest.Waits(t, a, storetest.Request("taken"))
	next := storetest.Waits(t, b, storetest.Request("held"))
	a.conn.Close()
	next.Granted(t)
	storetest.Receive(t, lease.Context().Done())
	require.ErrorIs(t, lease.Err(), lock.ErrLost)
	waiting.End(t)
	require.ErrorIs(t, waiting.Err, lock.ErrClosed)
	_, err = a.Acquire(ctx, storetest.Request("another"))
	require.ErrorIs(t, err, lock.ErrClosed)
	require.ErrorContains(t, err, "client is closed")
	require.NoError(t, c.Close(ctx), "it has no key to leave")
}

// TestClientClosedUnderWay: a call that is under way as zk.Conn is closed gets ErrClosed, too.
func TestClientClosedUnderWay(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t)
	storetest.Eventually(t, "ErrClosed", func() bool { // a slow machine may end the call before it ends the session
		a := w.open(t)
		storetest.Release(t, a, storetest.Acquire(t, a, storetest.Request("k")))
		storetest.Eventually(t, "the end of all writes", a.writes(0, 0))
		defer a.proxy.Delay(faultproxy.All(), 100*time.Millisecond).Heal()
		result := make(chan error, 1)
		go func() { _, err := a.Acquire(storetest.Bounded(t), storetest.Request("k")); result <- err }()
		storetest.Eventually(t, "the creation", a.writes(1, 0))
		a.conn.Close()
		err := storetest.Receive(t, result)
		require.Error(t, err)
		return errors.Is(err, lock.ErrClosed)
	})
}

// TestClientClosedOfOneWhoLooks: nor do a Locker that never acquired, and its Watch, go on for ever.
func TestClientClosedOfOneWhoLooks(t *testing.T) {
	t.Parallel()
	a := sharedWorld(t).lasting().open(t)
	watched := make(chan error, 1)
	began := make(chan struct{}, 1)
	go func() { watched <- a.Watch(storetest.Bounded(t), "k", func() { began <- struct{}{} }) }()
	storetest.Receive(t, began)
	storetest.Inspect(t, a, "k")
	a.conn.Close()
	require.Error(t, storetest.Receive(t, watched)) // be it of the session that has ended, or of the client
	for name, call := range map[string]func() error{
		"Inspect": func() error { _, err := a.Inspect(storetest.Bounded(t), "k"); return err },
		"Watch":   func() error { return a.Watch(storetest.Bounded(t), "k", func() {}) },
	} {
		storetest.Eventually(t, name, func() bool {
			err := call()
			require.Error(t, err)
			return errors.Is(err, lock.ErrClosed)
		})
	}
}

// TestClientClosedBefore: a zk.Conn that was closed before its first use answers like one that has lost
// its connection, and that for good.
func TestClientClosedBefore(t *testing.T) {
	t.Parallel()
	a := sharedWorld(t).open(t)
	a.conn.Close()
	storetest.Eventually(t, "ErrClosed", func() bool {
		_, err := a.Acquire(storetest.Bounded(t), storetest.Request("k"))
		require.Error(t, err)
		return errors.Is(err, lock.ErrClosed)
	})
}
