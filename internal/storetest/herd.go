package storetest

import (
	"context"
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

var herdFor = flag.Duration("herd.for", time.Second, "how long each of TestHerd's herds contends")

// Herd has 64 callers contend for one key, first all of one process, then with some of
// another who give up soon. One at a time must be served, with rising tokens, and the line
// must never stop: one of etcd once did, after 40,000 hand-overs in one process. -herd.for
// finds the likes of it.
func Herd(t *testing.T, open func() lock.Locker) {
	t.Run("OneProcess", func(t *testing.T) { contend(t, open(), 64, open(), 0) })
	t.Run("TwoProcesses", func(t *testing.T) { contend(t, open(), 48, open(), 16) })
}

// contend lets callers of a, who wait, and of b, who give up soon, in one after the other.
func contend(t *testing.T, a lock.Locker, patient int, b lock.Locker, impatient int) {
	t.Helper()
	const key, soon = "herd", 100 * time.Millisecond
	ctx, stop := context.WithCancelCause(t.Context())
	defer stop(nil)
	var (
		callers  sync.WaitGroup
		inside   atomic.Int32
		last     lock.Token // guarded by the lock
		served   atomic.Int64
		watchdog = time.AfterFunc(Patience, func() { stop(errors.New("nobody is served any more")) })
		end      = time.Now().Add(*herdFor)
	)
	start := func(l lock.Locker, n int, waiting func() (context.Context, context.CancelFunc)) {
		c := lock.New(l)
		t.Cleanup(func() { _ = c.Close(Bounded(t)) })
		for range n {
			callers.Go(func() {
				for ctx.Err() == nil && time.Now().Before(end) {
					wait, giveUp := waiting()
					err := c.Do(wait, key, func(_ context.Context, l *lock.Lease) error {
						assert.EqualValues(t, 1, inside.Add(1), "callers inside")
						assert.Greater(t, l.Token(), last)
						last = l.Token()
						inside.Add(-1)
						served.Add(1)
						watchdog.Reset(Patience)
						return nil
					})
					if err != nil && wait.Err() == nil {
						stop(err)
					}
					giveUp()
				}
			})
		}
	}
	start(a, patient, func() (context.Context, context.CancelFunc) { return ctx, func() {} })
	start(b, impatient, func() (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, rand.N(soon))
	})
	callers.Wait()
	watchdog.Stop()
	require.NoError(t, context.Cause(ctx), "%d were served, now %+v", served.Load(), Inspect(t, a, key))
	t.Logf("%d were served", served.Load())
	Eventually(t, "nothing to be left behind", func() bool {
		rec := Inspect(t, a, key)
		return len(rec.Holders)+len(rec.Waiters) == 0
	})
}
