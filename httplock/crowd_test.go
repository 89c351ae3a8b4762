package httplock_test

import (
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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
