package memory_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/seed-215fdefa/lock"
	"github.com/seed-215fdefa/lock/memory"
)

// Tries, waits that are canceled at any moment and waits to the end, in both modes and
// in real time. Two writers at once, or a writer beside a reader, are seen by the counts;
// a grant that got lost, between a cancel and its hand-over, by a wait that never ends.
func TestStress(t *testing.T) {
	const keys, workers, rounds = 3, 32, 200
	l := memory.New()
	var readers, writers [keys]atomic.Int32
	var newest [keys]lock.Token // guarded by the locks
	work := func(p lock.Locker) {
		for range rounds {
			k := rand.IntN(keys)
			req := request(fmt.Sprint(k), withTTL(time.Minute))
			req.Shared, req.Wait = rand.IntN(3) == 0, rand.IntN(4) > 0
			ctx, cancel := context.WithCancel(context.Background())
			if rand.IntN(2) == 0 {
				time.AfterFunc(time.Duration(rand.IntN(200))*time.Microsecond, cancel)
			}
			g, err := p.Acquire(ctx, req)
			cancel()
			if err != nil {
				continue
			}
			if req.Shared {
				readers[k].Add(1)
			} else if writers[k].Add(1) != 1 || readers[k].Load() != 0 || g.Token <= newest[k] {
				t.Errorf("%d writers, %d readers, token %d after %d",
					writers[k].Load(), readers[k].Load(), g.Token, newest[k])
			} else {
				newest[k] = g.Token
			}
			runtime.Gosched()
			if req.Shared {
				readers[k].Add(-1)
			} else {
				writers[k].Add(-1)
			}
			if err := p.Release(context.Background(), g); err != nil {
				t.Error(err)
			}
		}
	}
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() { work(l.Open()) })
	}
	wg.Wait()
	empty(t, l)
}

// Releases that meet the expiry timer: each grant ends once, and the line moves on.
func TestReleaseMeetsExpiry(t *testing.T) {
	l := memory.New()
	var released, lost atomic.Int32
	var wg sync.WaitGroup
	const workers, rounds = 8, 20
	for range workers {
		wg.Go(func() {
			for range rounds {
				g, err := l.Acquire(context.Background(), request("k", waiting, withTTL(memory.MinTTL)))
				if err != nil {
					t.Error(err)
					return
				}
				time.Sleep(time.Until(g.Start.Add(g.TTL)))
				if l.Release(context.Background(), g) == nil {
					released.Add(1)
				} else {
					lost.Add(1)
				}
			}
		})
	}
	wg.Wait()
	require.EqualValues(t, workers*rounds, released.Load()+lost.Load())
	_, err := l.Inspect(context.Background(), "k")
	require.NoError(t, err)
	empty(t, l)
}

func TestAllocations(t *testing.T) {
	l := memory.New()
	ctx := context.Background()
	req := request("k")
	n := testing.AllocsPerRun(1000, func() {
		g, err := l.Acquire(ctx, req)
		if err != nil || l.Release(ctx, g) != nil {
			t.Error("not acquired and released")
		}
	})
	require.LessOrEqual(t, n, 2.0, "allocations for Acquire and Release")
}

func TestBytesPerGrant(t *testing.T) {
	const n = 100_000
	l := memory.New()
	reqs := make([]lock.Request, n)
	for i := range reqs {
		reqs[i] = request(fmt.Sprint("key-", i), withTTL(time.Hour))
	}
	before := heap()
	for _, req := range reqs {
		acquire(t, l, req)
	}
	per := (heap() - before) / n
	t.Logf("%d bytes per grant", per)
	require.Less(t, per, uint64(256))
	runtime.KeepAlive(reqs)
	runtime.KeepAlive(l)
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
