package bench

import (
	"context"
	"fmt"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

func nothing(context.Context, *lock.Lease) error { return nil }

// TestMemoryDo measures Do on the embedded store, uncontended, without options.
func TestMemoryDo(t *testing.T) {
	ctx := context.Background()
	c := lock.New(memory.New())
	defer func() { require.NoError(t, c.Close(ctx)) }()
	do := testing.Benchmark(func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if err := c.Do(ctx, "key", nothing); err != nil {
				b.Fatal(err)
			}
		}
	})
	now := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			_ = time.Now()
		}
	})
	out := table{title: "`Do` on the embedded store, uncontended", head: []string{"what", "measured"}}
	out.add("time", fmt.Sprintf("%d ns, where time.Now costs %d ns", do.NsPerOp(), now.NsPerOp()))
	out.add("allocations", strconv.FormatInt(do.AllocsPerOp(), 10))
	out.print()
}

// TestManyLeases lets one Client hold many leases for a while.
func TestManyLeases(t *testing.T) {
	s := scales()
	ctx := context.Background()
	key := func(i int) string { return "key:" + strconv.Itoa(i) }

	before := heap()
	store := memory.New()
	keep := make([]lock.Grant, s.leases)
	for i := range keep {
		g, err := store.Acquire(ctx, lock.Request{
			Key: key(i), Owner: fmt.Sprintf("owner-of-22-bytes-%04d", i%10000), TTL: time.Hour,
			Lost: func(lock.LostReason) { keep[i] = lock.Grant{} },
		})
		require.NoError(t, err)
		keep[i] = g
	}
	alone := heap() - before
	runtime.KeepAlive(store)
	keep, store = nil, nil

	before = heap()
	c := lock.New(memory.New(), lock.WithTTL(10*time.Second))
	leases := make([]*lock.Lease, s.leases)
	for i := range leases {
		l, err := c.Lock(ctx, key(i))
		require.NoError(t, err)
		leases[i] = l
	}
	each := (heap() - before - alone) / int64(s.leases)

	most, lost := 0, 0
	for end := time.Now().Add(s.held); time.Now().Before(end); time.Sleep(time.Millisecond) {
		most = max(most, runtime.NumGoroutine())
	}
	for _, l := range leases {
		if l.Err() != nil {
			lost++
		}
	}
	out := table{title: fmt.Sprintf("%d leases of TTL 10 s held for %v by one Client on the embedded store", s.leases, s.held), head: []string{"what", "measured"}}
	out.add("heap a lease, beside the store's own", fmt.Sprintf("%d bytes", each))
	out.add("goroutines at once, at most", strconv.Itoa(most))
	out.add("lost", strconv.Itoa(lost))
	out.print()
	require.NoError(t, c.Close(ctx))
}

// heap is what is live. Two collections, since the first may only begin to finish.
func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
