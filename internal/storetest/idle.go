package storetest

import (
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
)

// IdleCost holds many locks of l whose losses are to be told, and checks what one of them costs while
// nothing happens: no goroutine, and at most that many bytes. settled waits until nothing is under way
// while so many are held. A test with it cannot be parallel.
func IdleCost(t *testing.T, l lock.Locker, bytes uint64, settled func(held int)) {
	t.Helper()
	const locks, callers = 5000, 50
	ctx := Bounded(t)
	var lost atomic.Int64 // that may be told after the test, too
	hold := func(key string) {
		req := Lasting(Request(key), 5*time.Minute)
		req.Lost = func(lock.LostReason) { lost.Add(1) }
		if _, err := l.Acquire(ctx, req); err != nil {
			t.Error(err)
		}
	}
	measure := func() (goroutines int, bytes uint64) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return runtime.NumGoroutine(), m.HeapAlloc
	}
	hold("first")
	settled(1)
	goroutines, before := measure()
	var all sync.WaitGroup
	for i := range callers {
		all.Go(func() {
			for j := i; j < locks; j += callers {
				hold(fmt.Sprint("idle ", j))
			}
		})
	}
	all.Wait()
	settled(1 + locks)
	Eventually(t, "their goroutines to end", func() bool { return runtime.NumGoroutine() < goroutines+locks/50 })
	more, after := measure()
	each := (after - min(before, after)) / locks
	t.Logf("%d goroutines for all, %d bytes a lock", more-goroutines, each)
	require.LessOrEqual(t, each, bytes)
	require.Zero(t, lost.Load())
}
