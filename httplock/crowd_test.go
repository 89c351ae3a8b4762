package httplock_test

import (
	"context"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/httplock"
	"github.com/seed-215fdefa/lock/internal/storetest"
)

// A waiter costs the service one goroutine beside that of its connection, which is another's
// between two polls, and about 7 KB, of which the store in memory has a part; when it goes, nothing
// stays.
func TestCostOfAWaiter(t *testing.T) {
	const most = 16 << 10 // with the race detector, and what the collector has not found
	n := 1000
	if os.Getenv("LOCK_TEST_MANY") != "" {
		n = 10_000
	}
	st := onMemory(t)
	s := serve(t, st.Open)
	g := storetest.Acquire(t, st.Open(), storetest.Request("k"))
	polled := func(i int) { // once: between polls there is no connection
		a := ask(t, s, "POST", "/v1/locks/k:acquire", "application/json", `{"owner":"w`+strconv.Itoa(i)+`","ttl":"30s","wait":true}`)
		require.Equal(t, 202, a.Status)
	}
	polled(0)
	before, heap := runtime.NumGoroutine(), inUse()
	begun := time.Now()
	for i := range n {
		polled(i + 1)
		if time.Since(begun) > 3*time.Second { // the first of them give up soon
			n = i + 1
			break
		}
	}
	goroutines, bytes := runtime.NumGoroutine()-before, inUse()-heap
	if n < 100 {
		t.Skip("too slow a machine: what it has done beside ", n, " waiters is more than they cost")
	}
	t.Logf("%d waiters: %d goroutines, %d bytes each", n, goroutines, bytes/n)
	require.LessOrEqual(t, goroutines, n+50)
	require.LessOrEqual(t, bytes/n, most)
	storetest.Release(t, st.Open(), g)
	storetest.Eventually(t, "an empty line, since nobody comes back", func() bool {
		rec, err := st.Open().Inspect(t.Context(), "k")
		return err == nil && rec.WaiterCount == 0 && rec.HolderCount == 0
	})
}

// inUse is the memory of the heap and of stacks.
func inUse() int {
	for range 3 { // pools and finalizers take one each
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc + m.StackInuse)
}

// Thousands wait for one key, the service starts again while they do, and all are served. Each has a
// connection of its own.
func TestThousandsWait(t *testing.T) {
	many(t)
	const n = 2_000
	st := onRedis(t)
	s := serve(t, st.Open)
	l := httplock.New("http://" + s.Addr)
	t.Cleanup(func() { _ = l.Close() })
	g := storetest.Acquire(t, l, storetest.Request("k"))
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	var waiting, served sync.WaitGroup
	errs := make(chan error, n)
	for i := range n {
		waiting.Add(1)
		req := lock.Request{Key: "k", Owner: "w" + strconv.Itoa(i), TTL: time.Minute, Wait: true, Waiting: func(lock.Record) { waiting.Done() }}
		served.Go(func() {
			g, err := l.Acquire(ctx, req)
			if err == nil {
				err = l.Release(ctx, g)
			}
			errs <- err
		})
	}
	begun := time.Now()
	waiting.Wait()
	t.Logf("all wait after %v", time.Since(begun))
	s.Restart()
	begun = time.Now()
	storetest.Release(t, l, g)
	served.Wait()
	t.Logf("all are served after %v", time.Since(begun))
	for range n {
		require.NoError(t, <-errs)
	}
}
