package lock_test

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func nothing(context.Context, *lock.Lease) error { return nil }

// What a Do costs on the embedded store, that store's allocations included: 9, and 10 with
// the race detector, which keeps a call from being inlined.
func TestDoAllocations(t *testing.T) {
	c := lock.New(memory.New())
	ctx := t.Context()
	n := testing.AllocsPerRun(1000, func() {
		if err := c.Do(ctx, "key", nothing); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("%v allocations", n)
	require.LessOrEqual(t, n, 10.0)
	require.NoError(t, c.Close(ctx))
}

func BenchmarkDo(b *testing.B) {
	ctx := context.Background()
	b.Run("uncontended", func(b *testing.B) {
		c := lock.New(memory.New())
		b.ReportAllocs()
		for b.Loop() {
			if err := c.Do(ctx, "key", nothing); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("parallel", func(b *testing.B) {
		c := lock.New(memory.New())
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			key := fmt.Sprint(new(int)) // one of its own
			for pb.Next() {
				if err := c.Do(ctx, key, nothing); err != nil {
					b.Error(err)
				}
			}
		})
	})
}

// TestManyLeases holds 100,000 leases for half a minute of real time: none is lost, none has a
// goroutine of its own. Set LOCK_TEST_MANY=1.
func TestManyLeases(t *testing.T) {
	if os.Getenv("LOCK_TEST_MANY") == "" {
		t.Skip("takes half a minute and two cores: set LOCK_TEST_MANY=1")
	}
	const count = 100_000
	const ttl = 30 * time.Second
	ctx := t.Context()
	keys := make([]string, count)
	for i := range keys {
		keys[i] = fmt.Sprint("key-", i)
	}
	bare := perKey(count, func() any { return holdBare(t, keys, ttl) })

	c := lock.New(memory.New(), lock.WithTTL(ttl))
	leases := make([]*lock.Lease, count)
	with := perKey(count, func() any {
		for i, key := range keys {
			l, err := c.TryLock(ctx, key)
			require.NoError(t, err)
			leases[i] = l
		}
		return c
	})
	t.Logf("heap per lease: %d bytes beside the store's %d", with-bare, bare)
	require.LessOrEqual(t, with-bare, 768)

	most := 0
	for start := time.Now(); time.Since(start) < ttl; time.Sleep(time.Millisecond) {
		most = max(most, runtime.NumGoroutine())
	}
	t.Logf("at most %d goroutines", most)
	require.LessOrEqual(t, most, 5000) // 1,700 were seen with 20 processes for each processor
	for _, l := range leases {
		require.NoError(t, l.Err())
	}
	require.NoError(t, c.Close(ctx))
}

// holdBare takes all keys at a store of its own, without a Client.
func holdBare(t *testing.T, keys []string, ttl time.Duration) lock.Locker {
	l := memory.New()
	for i, key := range keys {
		_, err := l.Acquire(t.Context(), lock.Request{Key: key, Owner: fmt.Sprintf("%022d", i), TTL: ttl})
		require.NoError(t, err)
	}
	return l
}

// perKey is the heap that what fill returns takes, by key.
func perKey(count int, fill func() any) int {
	heap := func() int {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int(m.HeapAlloc)
	}
	before := heap()
	v := fill()
	after := heap()
	runtime.KeepAlive(v)
	return (after - before) / count
}

// BenchmarkDoAll compares a DoAll of three keys with a Do.
func BenchmarkDoAll(b *testing.B) {
	ctx := context.Background()
	c := lock.New(memory.New())
	keys := []string{"a", "b", "c"}
	b.Run("Do", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := c.Do(ctx, "a", nothing); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("DoAll", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := c.DoAll(ctx, keys, func(context.Context, []*lock.Lease) error { return nil }); err != nil {
				b.Fatal(err)
			}
		}
	})
}
