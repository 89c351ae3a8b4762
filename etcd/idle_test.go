package etcd_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/internal/storetest"
	"github.com/seed-215fdefa/lock/internal/testserver"
)

// TestSuspendedMachine: etcd's clock went on, and the monotonic one has stood still. What is left of
// an etcd lease is what the wall clock says; a grant that is over is lost.
func TestSuspendedMachine(t *testing.T) {
	t.Parallel()
	l, _, _ := pair(t)
	const ttl = 40 * time.Second
	lost := make(chan lock.LostReason, 1)
	req := storetest.Lasting(storetest.Request("k"), ttl)
	req.Lost = func(r lock.LostReason) { lost <- r }
	g := storetest.Acquire(t, l, req)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Lasting(storetest.Request("another"), ttl)))
	require.Greater(t, l.LivesFor(ttl), ttl/2)
	l.Suspend(ttl / 4)
	require.Positive(t, l.LivesFor(ttl))
	require.LessOrEqual(t, l.LivesFor(ttl), ttl*3/4)
	require.Empty(t, lost)
	l.Suspend(ttl * 5 / 8)
	require.Zero(t, l.LivesFor(ttl), "a keepalive may come too late")
	l.Suspend(ttl / 4)
	require.Equal(t, lock.ReasonExpired, storetest.Receive(t, lost))
	_, err := l.Renew(storetest.Bounded(t), g)
	require.Equal(t, lock.ReasonExpired, storetest.Lost(t, err))
	next := storetest.Acquire(t, l, storetest.Lasting(storetest.Request("next"), ttl))
	require.Greater(t, next.TTL, ttl/2, "under a new etcd lease")
}

// TestPruneAfterAnOutage: what hundreds of failed tries may have left is pruned in few requests, for
// the outage as well, and then there is nothing to do.
func TestPruneAfterAnOutage(t *testing.T) {
	t.Parallel()
	l, _, _ := pair(t)
	storetest.Release(t, l, storetest.Acquire(t, l, storetest.Request("warm")))
	var sent atomic.Int64
	outage := func(txn) fate { sent.Add(1); return fate{late: true} } // it is never delivered
	l.kv.set(outage)
	const tries = 300
	var all sync.WaitGroup
	for i := range tries {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 12*time.Second) // for all to be sent
			defer cancel()
			_, err := l.Acquire(ctx, storetest.Request(fmt.Sprint("k", i)))
			if err == nil {
				t.Error("a grant without a server")
			}
		})
	}
	all.Wait()
	require.Equal(t, tries, l.Unpruned())
	storetest.Eventually(t, "few transactions when each has been tried once", func() bool {
		sent.Store(0)
		begun := time.Now()
		time.Sleep(3 * time.Second)
		perSecond := float64(sent.Load()) / time.Since(begun).Seconds()
		t.Logf("%.1f transactions a second during the outage", perSecond)
		return perSecond < tries/5.0
	})

	sent.Store(0)
	l.kv.set(func(txn) fate { sent.Add(1); return fate{} })
	storetest.Eventually(t, "the end of pruning", func() bool { return l.Unpruned() == 0 })
	t.Logf("%d transactions to prune %d", sent.Load(), tries)
	require.Less(t, sent.Load(), int64(tries/5))
	storetest.Eventually(t, "a second without a transaction", func() bool {
		before := sent.Load()
		time.Sleep(time.Second)
		return sent.Load() == before
	})
}

// TestManyLeases holds 5,000 leases until all have been renewed: none is lost, none has a
// goroutine of its own. With LOCK_TEST_MANY=1 they are 100,000, for more than a TTL. Two cores did
// that with 701 bytes of heap a lease and at most 1,189 goroutines: taken in 5.6 s, released in 7 s.
func TestManyLeases(t *testing.T) {
	t.Parallel()
	count, ttl, held := 5000, time.Minute, 30*time.Second
	if os.Getenv("LOCK_TEST_MANY") != "" {
		count, held = 100_000, 70*time.Second
	}
	const callers = 500
	l := openOn(t, testserver.Prefix(), []string{testserver.Etcd(t).Addr()})
	c := lock.New(l, lock.WithTTL(ttl))
	ctx := t.Context()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	leases := make([]*lock.Lease, count)
	var all sync.WaitGroup
	begun := time.Now()
	for i := range callers {
		all.Go(func() {
			for j := i; j < count; j += callers {
				var err error
				if leases[j], err = c.TryLock(ctx, fmt.Sprint("key-", j)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	require.False(t, t.Failed())
	t.Logf("taken in %v", time.Since(begun))
	runtime.GC()
	runtime.ReadMemStats(&after)
	t.Logf("%d bytes of heap a lease", int(after.HeapAlloc-before.HeapAlloc)/count)
	least, most := count, 0
	for start := time.Now(); time.Since(start) < held; time.Sleep(10 * time.Millisecond) {
		n := runtime.NumGoroutine()
		least, most = min(least, n), max(most, n)
	}
	t.Logf("from %d to %d goroutines", least, most)
	require.Less(t, least, count/2)
	for _, lease := range leases {
		require.NoError(t, lease.Err())
	}
	begun = time.Now()
	require.NoError(t, c.Close(ctx))
	t.Logf("released in %v", time.Since(begun))
}
