package zookeeper_test

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// TestHandOverGivenUp: a wait is given up while the release that hands over to it is under
// way. It is not held then: its node goes, nothing is kept of it, and no loss is told.
func TestHandOverGivenUp(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a, b := w.open(t), w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	const ttl = 300 * time.Millisecond
	lost := make(chan lock.LostReason, 1)
	req := storetest.Lasting(storetest.Request("k"), ttl)
	req.Lost = func(r lock.LostReason) { lost <- r }
	waiting := storetest.Waits(t, a, req)
	storetest.Eventually(t, "the end of all writes", a.writes(0, 0))
	thaw := a.proxy.Freeze()
	released := make(chan error, 1)
	go func() { released <- a.Release(storetest.Bounded(t), g) }()
	storetest.Eventually(t, "the release", a.writes(1, 0))
	waiting.Cancel()
	waiting.End(t)
	require.ErrorIs(t, waiting.Err, context.Canceled)
	thaw()
	require.NoError(t, <-released)
	storetest.Eventually(t, "the end of both nodes", func() bool { return len(names(t, b.conn, w.root+"/k")) == 0 })
	select {
	case r := <-lost:
		require.FailNow(t, "a loss of what was never granted", "%v", r)
	case <-time.After(2 * ttl):
	}
	require.Zero(t, a.Claims())
}

// TestHandOverDuringALook: a release hands over to a waiter that is waiting for an answer. It has the grant
// all the same, and at once: the TTL runs.
func TestHandOverDuringALook(t *testing.T) {
	t.Parallel()
	w := sharedWorld(t).lasting()
	a := w.open(t)
	g := storetest.Acquire(t, a, storetest.Request("k"))
	recheck := a.proxy.Drop(asks(opExists, "/k/"))
	waiting := storetest.Waits(t, a, storetest.Request("k"))
	storetest.Receive(t, recheck.Hit())
	storetest.Release(t, a, g)
	next := waiting.Granted(t)
	require.Equal(t, waiting.Owner, next.Owner)
	storetest.Release(t, a, storetest.Renew(t, a, next))
	require.Zero(t, a.Claims())
}
